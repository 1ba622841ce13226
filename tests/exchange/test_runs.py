"""Runs that leave for transformers and come back, and runs that begin with other runs' weights."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_train.runtime import yaml12
from llm_train.testing.checkpoints import final_state, tensors_of
from llm_train.testing.command import refused, run
from llm_train.testing.configs import losses, part, tiny, write
from llm_train.testing.fork_server import ForkServer
from llm_train.trainer.logger.records import read_metrics

transformers = pytest.importorskip("transformers")

TEXT = "the quick brown fox jumps over the lazy dog, and the dog does not mind at all\n"


def done(*arguments: str) -> str:
    outcome = run(*arguments)
    assert outcome.code == 0, outcome.err
    return outcome.out


def refused_late(*arguments: str) -> list[str]:
    """The errors of a run that is refused when it looks at what it is to go on with."""
    outcome = run(*arguments)
    assert outcome.code == 2, outcome
    return [line for line in outcome.err.splitlines() if ": error: " in line]


def val(run_dir: Path) -> float:
    records = read_metrics(run_dir / "metrics.jsonl")
    loss: float = [r["val/loss"] for r in records if "val/loss" in r][-1]
    return loss


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run on text, of a tokenizer of its own, and its exported folder."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text(TEXT * 400)
    tokenizer = part("TrainBPE", vocab_size=300)
    corpus = part("TextFiles", paths=[str(folder / "text.txt")])
    split = part("TailSplit", fraction=0.1)
    config = tiny(
        folder / "run",
        steps=4,
        data__source=part("TokenShards", path=str(folder / "tokens")),
        data__recipe=part("Tokenize", corpus=corpus, tokenizer=tokenizer, split=split),
    )
    size = {"vocab_size": 300, "pad_vocab_to": 64, "dropout": 0.0, "kv_heads": 1}
    config["model"]["network"]["init_args"] |= size
    file = str(write(folder / "run.yaml", config))
    done("prepare", "-c", file)
    done("fit", "-c", file)
    said = done("export", str(folder / "run"), str(folder / "theirs"), "--shard-gb=0.00001")
    assert "LlamaForCausalLM" in said
    return folder


def test_the_folder_opens_with_its_tokenizer_and_its_proof(trained: Path) -> None:
    theirs = trained / "theirs"
    assert len(list(theirs.glob("*.safetensors"))) > 2
    index = json.loads((theirs / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {f.name for f in theirs.glob("*.safetensors")}
    proof = json.loads((theirs / "proof.json").read_text())
    assert proof["largest_difference"] <= proof["limit"]
    assert proof["text_equal"] is True
    tokenizer = transformers.AutoTokenizer.from_pretrained(theirs)
    from llm_train.data.tokenizer.tokenizer_file import load_tokenizer

    ours = load_tokenizer(trained / "tokens")
    assert tokenizer(TEXT)["input_ids"] == ours.encode(TEXT).ids
    assert tokenizer.eos_token == "<|endoftext|>"
    model = transformers.AutoModelForCausalLM.from_pretrained(theirs)
    assert model.config.eos_token_id == model.generation_config.eos_token_id == 0
    assert f"{val(trained / 'run'):.4f}" in (theirs / "README.md").read_text()


def test_training_goes_on_alike_after_another_export_and_import(
    trained: Path, tmp_path: Path
) -> None:
    """The configuration that import writes trains, but for the text that it names."""
    states = []
    source = trained / "theirs"
    for name in ("once", "twice"):
        out = tmp_path / name
        done("import", str(source), str(out))
        config = yaml12.load((out / "config.yaml").read_text())
        config["data"]["source"]["init_args"]["path"] = str(tmp_path / "tokens")
        recipe = config["data"]["recipe"]["init_args"]
        recipe["corpus"]["init_args"]["paths"] = [str(trained / "text.txt")]
        recipe["tokenizer"]["init_args"]["path"] = str(trained / "theirs" / "tokenizer.json")
        config["trainer"] |= {"default_root_dir": str(tmp_path / f"run-{name}")}
        config["trainer"] |= {"accelerator": "cpu", "devices": 1}
        config["model"]["schedule"]["init_args"]["warmup"] = "2 steps"
        file = str(write(tmp_path / f"{name}.yaml", config | {"budget": "20 steps"}))
        done("prepare", "-c", file)
        done("validate", "-c", file, "--checkpoint", str(out))
        (line,) = refused_late("fit", "-c", file, "--resume", str(out))
        assert "init_from.path" in line
        done("fit", "-c", file)
        states.append(final_state(tmp_path / f"run-{name}", 20))
        done("export", str(out), str(source := tmp_path / f"theirs-{name}"))
    once, twice = states
    assert once.keys() == twice.keys()
    assert all(torch.equal(once[key], twice[key]) for key in once)


def started(trained: Path, out: Path, *options: str, **network: Any) -> dict[str, torch.Tensor]:
    """The weights of a run that begins with those of ``trained``, after a step without a rate."""
    config = yaml12.load((trained / "run.yaml").read_text())
    config["model"]["network"]["init_args"] |= network
    config["model"]["optimizer"]["init_args"] |= {"learning_rate": 1e-12, "weight_decay": 0.0}
    config["trainer"]["default_root_dir"] = str(out)
    config |= {"budget": "1 steps", "seed": 11}
    config["model"]["schedule"], config["checkpoint"] = part("Constant"), {"every": "0 steps"}
    done("fit", "-c", str(write(out.with_suffix(".yaml"), config)), *options)
    return tensors_of(out / "checkpoints" / "step-00000001")


@pytest.mark.parametrize("source", ["run", "theirs"])
def test_a_run_begins_with_the_loss_of_its_source(
    trained: Path, tmp_path: Path, source: str
) -> None:
    started(trained, tmp_path / "new", f"--init_from.path={trained / source}")
    assert val(tmp_path / "new") == pytest.approx(val(trained / "run"), abs=1e-6)


def test_more_rows_and_what_is_left_out_begin_as_the_network_has_it(
    trained: Path, tmp_path: Path
) -> None:
    source = f"--init_from.path={trained / 'run'}"
    left_out = "--init_from.leave_out=[layers.1.mlp.*]"
    found = started(trained, tmp_path / "more", source, left_out, vocab_size=310)
    before = tensors_of(max((trained / "run" / "checkpoints").iterdir()))
    fresh = started(trained, tmp_path / "fresh", vocab_size=310)
    for key in (key for key in found if key.startswith("model.")):
        was = fresh if ".1.mlp." in key else before
        rows = 300 if key in ("model.embedding.weight", "model.head.weight") else None
        torch.testing.assert_close(found[key][:rows], was[key][:rows], rtol=0, atol=1e-9)
        if rows:
            torch.testing.assert_close(found[key][rows:], fresh[key][rows:], rtol=0, atol=1e-9)


def test_a_deeper_network_begins_with_copies_of_all_blocks(trained: Path, tmp_path: Path) -> None:
    options = (f"--init_from.path={trained / 'run'}", "--init_from.stack=true")
    found = started(trained, tmp_path / "deep", *options, layers=5)
    before = tensors_of(max((trained / "run" / "checkpoints").iterdir()))
    for key in (key for key in found if key.startswith("model.")):
        name = re.sub(r"(?<=layers\.)\d+", lambda block: str(int(block[0]) % 2), key)
        torch.testing.assert_close(found[key], before[name], rtol=0, atol=1e-9)
    (line,) = refused(
        "check", "-c", str(tmp_path / "deep.yaml"), *options, "--model.network.layers=2"
    )
    assert "init_from.stack" in line


@pytest.mark.parametrize("source", ["run", "theirs"])
def test_a_wider_network_begins_with_the_loss_of_its_source(
    trained: Path, tmp_path: Path, source: str
) -> None:
    wide = {"width": 32, "heads": 4, "kv_heads": 2, "mlp_width": 128, "vocab_size": 300}
    options = (f"--init_from.path={trained / source}", "--init_from.widen=2")
    started(trained, tmp_path / "wide", *options, **wide)
    assert val(tmp_path / "wide") == pytest.approx(val(trained / "run"), abs=1e-6)
    if source == "theirs":
        return
    check = ("check", "-c", str(tmp_path / "wide.yaml"), *options)
    check = (*check, f"--trainer.default_root_dir={tmp_path / 'new'}")
    assert "note: model" not in done(*check)
    for key, other in (("positions", "alibi"), ("heads", "8"), ("mlp_width", "130")):
        (line,) = refused(*check, f"--model.network.{key}={other}")
        assert f"{key}={other}" in line
        assert "init_from.widen=2" in line
    (line,) = refused(*check, "--init_from.widen=0")
    assert "init_from.widen" in line


def test_what_does_not_fit_is_refused_with_its_name(trained: Path) -> None:
    file, source = str(trained / "run.yaml"), f"--init_from.path={trained / 'run'}"
    new = f"--trainer.default_root_dir={trained / 'new'}"
    (line,) = refused("check", "-c", file, source, new, "--model.network.tied=true")
    assert "head.weight" in line
    assert "init_from.leave_out" in line
    (line,) = refused("fit", "-c", file, "--init_from.path=nowhere")
    assert "nowhere" in line
    (line,) = refused("check", "-c", file, "--init_from.path=preset:quickstart")
    assert "init_from.path=preset:quickstart" in line
    assert "-c" in line
    checked = run("check", "-c", file, "--init_from.path=nowhere")
    assert (checked.code, checked.err) == (1, "")
    assert "note: init_from.path=nowhere is not here yet" in checked.out
    done("plan", "-c", file, "--init_from.path=nowhere")
    hidden_by_padding = "--model.network.vocab_size=299"
    other_data = ("--data.source=RandomTokens", "--data.recipe=Prepared")
    (line,) = refused("fit", "-c", file, source, new, *other_data, hidden_by_padding)
    assert "embedding.weight is (300, 16) there and (299, 16) here" in line
    other = ("--model.network.rotary_base=500000", "--model.network.norm_eps=1e-6")
    for where in ("run", "theirs"):
        noted = done("check", "-c", file, f"--init_from.path={trained / where}", new, *other)
        for key in ("rotary_base", "norm_eps"):
            assert f"note: model.network.init_args.{key}=" in noted
        assert noted.count("note: ") == 2, noted
    (line,) = refused("check", "-c", file, source, new, "--init_from.leave_out=[haed.*]")
    assert "init_from.leave_out" in line
    assert "haed.*" in line
    (line,) = refused("check", "-c", file, source, new, '--init_from.leave_out=["*"]')
    assert "remove init_from" in line
    (line,) = refused("check", "-c", file, source)  # whose weights a new run would move away
    assert "trainer.default_root_dir" in line
    (line,) = refused("export", str(trained / "run"), str(trained))
    assert "not empty" in line
    (line,) = refused("export", str(trained / "run"), str(trained / "new"), "--shard-gb=0")
    assert "--shard-gb=0" in line


def test_a_folder_that_cannot_be_read_is_refused_with_its_file(
    trained: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(trained / "theirs", folder)
    cut = min(folder.glob("*.safetensors"))
    assert cut.stat().st_mode & 0o777 == folder.stat().st_mode & 0o666
    cut.write_bytes(cut.read_bytes()[:-10])
    for command in (
        ("import", str(folder), str(tmp_path / "run")),
        ("check", "-c", str(trained / "run.yaml"), f"--init_from.path={folder}"),
    ):
        (line,) = refused(*command)
        assert str(cut) in line
    (line,) = refused("import", str(trained / "run"), str(tmp_path / "run"))
    assert "config.json" in line
    assert not (tmp_path / "run").exists()


def test_the_present_folder_is_no_place(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (line,) = refused("export", str(trained / "run"), ".")
    assert "present folder" in line
    (tmp_path / "mine.partial").mkdir()
    (line,) = refused("export", str(trained / "run"), "mine")
    assert "mine.partial is in the way" in line
    assert (tmp_path / "mine.partial").is_dir()


def test_a_resume_needs_no_source(trained: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(trained / "run", source)
    again = ("fit", "-c", str(trained / "run.yaml"), f"--init_from.path={source}")
    again = (*again, f"--trainer.default_root_dir={tmp_path / 'new'}")
    done(*again, "--budget=3 steps")
    shutil.rmtree(source)
    done(*again, "--budget=4 steps", "--resume=auto")
    done("validate", *again[1:])
    (line,) = refused(*again)
    assert "init_from.path" in line


@pytest.mark.distributed
@pytest.mark.parametrize("strategy", ["fsdp", pytest.param("zero3", marks=pytest.mark.slow)])
def test_every_rank_begins_with_its_part(
    trained: Path, tmp_path: Path, fork_server: ForkServer, strategy: str
) -> None:
    options = (f"--init_from.path={trained / 'theirs'}", "--budget=4 steps")
    arguments = ("fit", "-c", str(trained / "run.yaml"), *options)
    done(*arguments, f"--trainer.default_root_dir={tmp_path / 'one'}")
    both = (f"--trainer.strategy={strategy}", f"--trainer.default_root_dir={tmp_path / 'two'}")
    log = tmp_path / "log.txt"
    assert fork_server.run(*arguments, *both, ranks=2, log=log) == [0, 0], log.read_text()
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    assert "LlamaForCausalLM" in done("export", str(tmp_path / "two"), str(tmp_path / "out"))
