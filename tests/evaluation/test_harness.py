"""Texts and scores while training: the same on all strategies, and seen by nobody who trains."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from torch.nn import functional as F

from llm_train.errors import ConfigError
from llm_train.evaluation.subject import Subject
from llm_train.model.network.confined import confine, own_targets
from llm_train.model.network.transformer import Transformer
from llm_train.runtime import yaml12
from llm_train.testing.command import refused, run
from llm_train.testing.configs import losses, part, write
from llm_train.testing.fork_server import ForkServer
from llm_train.trainer.logger.records import read_lines, read_metrics

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def asked(folder: Path, tmp_path: Path, *callbacks: Any, **network: Any) -> Path:
    """The configuration of a run in ``tmp_path`` that is asked at steps 4 and 6."""
    config = yaml12.load((folder / "run.yaml").read_text())
    config["trainer"] |= {"callbacks": list(callbacks), "default_root_dir": str(tmp_path / "run")}
    config["model"]["network"]["init_args"] |= network
    return write(tmp_path / "asked.yaml", config)


def said(run_dir: Path) -> dict[int, list[dict[str, str]]]:
    lines = read_lines(run_dir / "metrics.jsonl")
    return {line["step"]: line["samples"] for line in lines if line.get("event") == "samples"}


SAMPLES = part("Samples", prompts=["the quick", ""], every=4, tokens=20, temperature=0.5)


def test_training_does_not_notice_samples(text_run: Path, tmp_path: Path) -> None:
    """Not even its dropout does."""
    found = {}
    for name, callbacks in (("plain", ()), ("asked", (SAMPLES, part("EMA", decay=0.9)))):
        (tmp_path / name).mkdir()
        config = asked(text_run, tmp_path / name, *callbacks, dropout=0.1)
        outcome = run("fit", "-c", str(config))
        assert outcome.code == 0, outcome.err
        found[name] = losses(tmp_path / name / "run")
    assert found["plain"] == found["asked"]
    texts = said(tmp_path / "asked" / "run")
    assert list(texts) == [4, 6]
    assert [each["prompt"] for each in texts[6]] == ["the quick", ""]
    assert f"-> {texts[6][0]['text']!r}" in outcome.err


def test_what_cannot_be_asked_is_refused(text_run: Path, tmp_path: Path) -> None:
    config = str(asked(text_run, tmp_path, SAMPLES))
    random = "--data.source={class_path: RandomTokens, init_args: {vocabulary: 61, length: 4000}}"
    outcome = run("fit", "-c", config, random, "--data.recipe=Prepared")
    assert outcome.code == 2
    assert "data.source holds token ids without a tokenizer; remove it" in outcome.err
    tensor = "--trainer.strategy={class_path: FSDP, init_args: {tensor: 2}}"
    lines = refused("check", "-c", config, tensor, "--trainer.devices=2")
    assert any("Samples" in line and "llm-train generate" in line for line in lines)


@pytest.mark.distributed
def test_all_strategies_say_the_same(
    fork_server: ForkServer, text_run: Path, tasks: Path, tmp_path: Path
) -> None:
    """Two ranks of DDP and of FSDP write and score what one process does, and so does the verb."""
    pytest.importorskip("lm_eval")
    harness = part(
        "Harness", tasks=["choice", "text", "writing"], folder=str(tasks), every=4, batch=2
    )
    found = {}
    for name, ranks in (("single", 0), ("ddp", 2), ("fsdp", 2)):
        folder = tmp_path / name
        folder.mkdir()
        arguments = ("fit", "-c", str(asked(text_run, folder, SAMPLES, harness)))
        log = folder / "log.txt"
        word = f"--trainer.strategy={name}"
        codes = fork_server.run(*arguments, word, ranks=ranks, log=log)
        assert set(codes) == {0}, log.read_text()
        records = {r["step"]: r for r in read_metrics(folder / "run" / "metrics.jsonl")}
        scores = {k: v for k, v in records[6].items() if k.startswith("eval/")}
        found[name] = (scores, said(folder / "run"))
    scores, texts = found["single"]
    assert losses(tmp_path / "single" / "run") == losses(text_run / "run")
    for name in ("ddp", "fsdp"):
        assert found[name][0] == pytest.approx(scores, rel=1e-4)
        assert found[name][1] == texts
    outcome = run(
        "eval",
        str(tmp_path / "single" / "run"),
        "--tasks=choice,text,writing",
        "--folder",
        str(tasks),
        "--json",
        str(tmp_path / "scores.json"),
    )
    assert outcome.code == 0, outcome.err
    from_checkpoint = json.loads((tmp_path / "scores.json").read_text())
    assert {
        f"eval/{k}": v for k, v in from_checkpoint.items() if "_stderr" not in k
    } == pytest.approx(scores)


def test_the_harness_scores_the_exported_folder_alike(
    text_run: Path, tasks: Path, tmp_path: Path
) -> None:
    """By its own model ``hf``, on what transformers opens."""
    pytest.importorskip("lm_eval")
    pytest.importorskip("accelerate")
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    names = ["choice", "text", "writing"]
    assert run("export", str(text_run / "run"), str(tmp_path / "out")).code == 0
    theirs = HFLM(pretrained=str(tmp_path / "out"), dtype="float32", device="cpu", batch_size=2)
    known = TaskManager(include_path=str(tasks), include_defaults=False)
    results = simple_evaluate(theirs, tasks=names, task_manager=known, bootstrap_iters=0)
    expected = {
        f"{task}/{key.removesuffix(',none')}": value
        for task, metrics in results["results"].items()
        for key, value in metrics.items()
        if key.endswith(",none") and "_stderr" not in key
    }
    file = tmp_path / "scores.json"
    arguments = (f"--tasks={','.join(names)}", "--folder", str(tasks), "--json", str(file))
    outcome = run("eval", str(text_run / "run"), *arguments)
    assert outcome.code == 0, outcome.err
    found = {k: v for k, v in json.loads(file.read_text()).items() if "_stderr" not in k}
    assert found == pytest.approx(expected, rel=1e-6)
    (refusal,) = refused("eval", str(text_run / "run"), "--tasks=nothing.yaml")
    assert "nothing.yaml" in refusal
    assert "lm-eval ls tasks" in refusal


def test_tasks_of_the_hub_are_refused_where_it_cannot_be_reached(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("lm_eval")
    from llm_train.evaluation.harness import loaded

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"hellaswag.*127\.0\.0\.1:9.*HF_HUB_OFFLINE=1"):
        loaded(["hellaswag"])


def test_a_confined_network_is_scored_as_it_is_trained() -> None:
    pytest.importorskip("lm_eval")
    from llm_train.evaluation.harness import Examinee

    torch.manual_seed(1)
    network = Transformer(vocab_size=9, layers=1, width=8, heads=2, max_sequence=16).build()
    subject = Subject(
        network=network.eval(),
        tokenizer=Tokenizer(models.WordLevel({"x": 0}, "x")),
        end_of_text=0,
        positions=16,
        device=torch.device("cpu"),
        confined=True,
    )
    tokens = torch.tensor([[0, 5, 3, 7, 7, 2]])
    inputs, targets = tokens[:, :-1], own_targets(tokens[:, 1:], tokens[:, :-1], 0)
    with torch.no_grad():
        logits = network(
            inputs,
            lambda hidden, head: head.logits(hidden),
            documents=confine(inputs, 0, blocks=False),
        )
    nats = F.cross_entropy(logits[0], targets[0], ignore_index=-1, reduction="sum")
    asked = [(None, [0], tokens[0, 1:].tolist()), (None, [0], [4])]
    found, alone = Examinee(subject, 2)._loglikelihood_tokens(asked)
    assert found[0] == pytest.approx(-float(nats), rel=1e-5)
    assert alone == (0.0, True)  # nothing announces a first token
    joined, _ = Examinee(replace(subject, confined=False), 2)._loglikelihood_tokens(asked)
    assert joined[0] < found[0] - 0.5
