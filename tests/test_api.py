"""The public interface: what is listed is what there is, it is cheap to import, and it works."""

from __future__ import annotations

import inspect
import logging
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from jsonargparse._common import parsing_settings

import llm_train
from llm_train.testing.configs import VOCAB, tiny, write
from llm_train.testing.ranks import environment

# What semantic versioning covers, with the parameters of what can be called.
PUBLIC = {
    "CheckpointError": None,
    "ConfigError": None,
    "DataError": None,
    "LLMTrainError": None,
    "Pretrained": ["path", "settings", "network"],
    "Result": ["step", "path", "metrics", "complete", "signal"],
    "Run": ["settings", "table", "trainer"],
    "Settings": None,
    "build": ["settings", "resume"],
    "load_checkpoint": ["where", "device", "allow_import"],
    "load_settings": ["files", "options", "allow_import"],
    "notes": ["settings"],
    "problems": ["settings", "running"],
    "table": ["settings", "device"],
    "validate": ["settings", "checkpoint"],
}


def test_what_is_public() -> None:
    assert sorted(llm_train.__all__) == sorted(PUBLIC)
    for name, parameters in PUBLIC.items():
        found = getattr(llm_train, name)
        if parameters is not None:
            assert list(inspect.signature(found).parameters) == parameters, name
    with pytest.raises(AttributeError, match="load_settings"):
        llm_train.fit  # noqa: B018


def test_importing_costs_nothing() -> None:
    code = "import sys, llm_train; print({'torch', 'lightning', 'yaml'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, check=True
    )
    assert done.stdout == b"set()\n"


def test_a_run_and_its_checkpoint_in_one_process(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = dict(parsing_settings)
    lightning = logging.getLogger("lightning.pytorch")
    monkeypatch.setattr(lightning, "handlers", [caplog.handler])
    caplog.set_level(logging.INFO, lightning.name)
    file = write(tmp_path / "tiny.yaml", tiny(tmp_path / "run"))
    options = {"budget": "4 steps", "model.optimizer.init_args.betas": [0.9, 0.99]}
    settings = llm_train.load_settings(file, options=options)
    assert settings.plain["model"]["optimizer"]["init_args"]["betas"] == [0.9, 0.99]
    assert llm_train.problems(settings) == []
    seen = []

    class Steps(pl.Callback):
        def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            seen.append(trainer.global_step)

    run = llm_train.build(settings)
    run.watch(Steps())
    result = run.fit()
    assert (result.step, result.complete, result.signal, seen) == (4, True, 0, [4])

    again = llm_train.validate(llm_train.load_settings(file, options=options))
    assert again.metrics == result.metrics
    with pytest.raises(llm_train.ConfigError, match="load them again"):
        llm_train.build(settings)
    longer = llm_train.load_settings(file, options={**options, "budget": "6 steps"})
    assert llm_train.build(longer, resume="auto").fit().step == 6

    pretrained = llm_train.load_checkpoint(result.path, device="cpu")
    tokens = torch.randint(VOCAB, (2, 16))
    logits = pretrained.logits(tokens)
    assert logits.shape == (2, 16, VOCAB)
    nats = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    sums = pretrained.settings.task.loss
    scored = pretrained.network(tokens[:, :-1], lambda h, p: sums(h, p, targets=tokens[:, 1:]))
    assert float(scored.nats / scored.tokens) == pytest.approx(float(nats), rel=1e-5)
    with pytest.raises(llm_train.CheckpointError, match="trained on tokens without a tokenizer"):
        list(pretrained.generate("a"))
    assert caplog.messages == [], "devices and tips, which the command line hides too"
    assert (lightning.level, lightning.handlers) == (logging.INFO, [caplog.handler])
    assert parsing_settings == before, "whoever else uses the parser finds it as it was"


def test_every_problem_is_an_exception(tmp_path: Path) -> None:
    file = write(tmp_path / "tiny.yaml", tiny(tmp_path / "run"))
    with pytest.raises(llm_train.ConfigError, match="layerz is not a setting of Transformer"):
        llm_train.load_settings(file, options={"model.network.init_args.layerz": 1})
    settings = llm_train.load_settings(file, options={"batch.tokens": 100})
    with pytest.raises(llm_train.ConfigError, match=r"batch.tokens=100 is not a multiple"):
        llm_train.build(settings)
    with pytest.raises(llm_train.CheckpointError, match="does not exist"):
        llm_train.load_checkpoint(tmp_path / "nowhere")


def test_parts_say_what_a_plain_trainer_lacks(tmp_path: Path) -> None:
    settings = llm_train.load_settings(write(tmp_path / "tiny.yaml", tiny(tmp_path / "run")))
    with pytest.raises(llm_train.ConfigError, match=r"llm_train.build\(settings\)"):
        settings.data.train_dataloader()
