"""``llm-train doctor``: a sound run leaves nothing behind; what is wrong has a remedy."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest

from llm_train.testing.command import Outcome, run
from llm_train.testing.configs import part, tiny, write
from llm_train.testing.fork_server import ForkServer


def rows(out: str) -> dict[str, set[str]]:
    """State -> what was found in it."""
    found = re.findall(r"^(ok|warning|failed) +(.{14}) ", out, re.MULTILINE)
    return {state: {about.strip() for s, about in found if s == state} for state, _ in found}


@pytest.mark.distributed
def test_two_ranks_that_can_run(fork_server: ForkServer, tmp_path: Path) -> None:
    config = tiny(tmp_path / "run", trainer__strategy="ddp", batch__tokens=256)
    before = {write(tmp_path / "c.yaml", config), log := tmp_path / "log.txt"}
    ends = fork_server.run("doctor", "-c", str(tmp_path / "c.yaml"), ranks=2, log=log)
    assert ends == [0, 0], log.read_text()
    found = rows(log.read_text())
    assert not found.get("failed")
    assert {"configuration", "versions", "devices", "disk space"} <= found["ok"]
    assert "write speed" in found["ok"] | found.get("warning", set())  # a busy disk is slow
    assert {"file system", "collectives", "one step"} <= found["ok"]
    assert re.search(r"2 ranks: [0-9.]+ GB/s", log.read_text())
    assert set(tmp_path.iterdir()) == before


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """A configuration whose tokens are there."""
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 200)
    config = tiny(
        tmp_path / "run",
        data={
            "source": part("TokenShards", path=str(tmp_path / "tokens")),
            "recipe": part(
                "Tokenize",
                corpus=part("TextFiles", paths=[str(tmp_path / "text.txt")]),
                tokenizer=part("Characters"),
                split=part("TailSplit"),
            ),
        },
    )
    path = write(tmp_path / "c.yaml", config)
    assert run("prepare", "-c", str(path)).code == 0
    return path


def doctor(path: Path, *options: str) -> tuple[Outcome, dict[str, set[str]]]:
    before = set(path.parent.rglob("*"))
    outcome = run("doctor", "-c", str(path), *options)
    assert set(path.parent.rglob("*")) == before
    return outcome, rows(outcome.out)


def test_data_that_changed_since_they_were_prepared(prepared: Path) -> None:
    outcome, found = doctor(prepared)
    assert outcome.code == 0, outcome
    assert "data" in found["ok"]
    (shard,) = (prepared.parent / "tokens").glob("train-*.bin")
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    outcome, found = doctor(prepared)
    assert outcome.code == 2
    assert found["failed"] >= {"data"}
    assert f"{shard} is damaged" in outcome.out
    assert "-> llm-train prepare --force" in outcome.out


@pytest.mark.parametrize(
    ("option", "failed", "remedy"),
    [
        ("--checkpoint.keep_last=1000000000", "disk space", "lower checkpoint.keep_last"),
        ("--trainer.accelerator=cuda", "configuration", "trainer.accelerator=cpu"),
        ("--model.network.init_args.vocab_size=5", "configuration", "vocab_size to "),
        ("--trainer.default_root_dir=text.txt/run", "write speed", "who may write there"),
    ],
)
def test_wrong_inputs(
    option: str, failed: str, remedy: str, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(prepared.parent)
    outcome, found = doctor(prepared, option)
    assert outcome.code == 2
    assert failed in found["failed"], outcome.out
    assert remedy in outcome.out
    assert "Traceback" not in outcome.out + outcome.err
    assert "versions" in found["ok"]  # the others are asked nevertheless


def test_a_service_that_does_not_answer_is_a_warning(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
        monkeypatch.setenv("WANDB_MODE", "online")
        outcome, found = doctor(prepared, "--trainer.logger=WandB")
    assert outcome.code == 0, outcome
    assert found["warning"] == {"W&B"}
    assert "wandb sync" in outcome.out
