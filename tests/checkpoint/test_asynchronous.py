"""A checkpoint that is written while training goes on is the one that training waits for."""

from __future__ import annotations

import errno
import os
import runpy
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_train.checkpoint.content import Content
from llm_train.checkpoint.store import CheckpointStore
from llm_train.testing.attach import attached
from llm_train.testing.checkpoints import tensors_of
from llm_train.testing.command import run
from llm_train.testing.configs import losses, part, tiny, write
from llm_train.testing.fork_server import ForkServer
from llm_train.trainer.logger.records import read_lines

WORKER = Path(__file__).with_name("slow_writing_worker.py")
CORRUPT = runpy.run_path(str(WORKER.with_name("corrupt_worker.py")))["Corrupt"]
STRATEGIES: dict[str, tuple[int, object]] = {
    "single": (0, "single"),
    "ddp": (2, "ddp"),
    "fsdp": (2, "fsdp"),
    "zero1": (2, "zero1"),
    "zero3": (2, "zero3"),
    "LocalSGD": (2, part("LocalSGD", every=2)),
    "tensor": (2, part("FSDP", tensor=2)),
    "hsdp": (4, part("FSDP", replicas=2)),
}


@pytest.mark.distributed
@pytest.mark.parametrize(
    "strategy",
    [
        # ZeRO-3's is written so by the first trial of tests/chaos/test_kill.py.
        pytest.param(name, marks=[] if name in ("single", "fsdp") else [pytest.mark.slow])
        for name in STRATEGIES
    ],
)
def test_training_changes_nothing_of_what_is_being_written(
    strategy: str, fork_server: ForkServer, tmp_path: Path
) -> None:
    """Two steps are made before the writing begins."""
    ranks, written = STRATEGIES[strategy]
    log = tmp_path / "log.txt"
    options: dict[str, Any] = {"trainer__strategy": written, "steps": 6}
    if strategy in ("single", "ddp", "fsdp"):
        options["trainer__callbacks"] = [part("EMA", decay=0.5)]  # has tensors of its own
    if strategy == "tensor":  # which must divide
        options["model__network__init_args__pad_vocab_to"] = 4
        options["model__network__init_args__mlp_width"] = 256
    for name, seconds in (("waiting", 0), ("asynchronous", 0.3)):
        config = tiny(tmp_path / name, checkpoint__asynchronous=seconds > 0, **options)
        arguments = [str(seconds), "fit", "-c", str(write(tmp_path / f"{name}.yaml", config))]
        statuses = fork_server.run(*arguments, ranks=ranks, log=log, script=WORKER)
        assert set(statuses) == {0}, log.read_text()
    one, other = (tmp_path / name / "checkpoints" for name in ("waiting", "asynchronous"))
    for step in (2, 4, 6):
        expected, found = (tensors_of(root / f"step-{step:08d}") for root in (one, other))
        assert expected.keys() == found.keys()
        assert all(found[key].equal(value) for key, value in expected.items()), step
        for rank in range(max(1, ranks)):
            name = f"step-{step:08d}/rank-{rank:05d}.pt"
            mine, its = (torch.load(root / name)["random"]["torch"] for root in (one, other))
            assert mine.equal(its)
    # The next start resumes from what was written alongside training.
    resumed = tiny(tmp_path / "resumed", **options)
    arguments = ["fit", "-c", str(write(tmp_path / "resumed.yaml", resumed))]
    arguments += ["--resume", str(other / "step-00000002")]
    assert set(fork_server.run(*arguments, ranks=ranks, log=log)) == {0}, log.read_text()
    expected = tensors_of(one / "step-00000006")
    found = tensors_of(tmp_path / "resumed" / "checkpoints" / "step-00000006")
    assert all(found[key].equal(value) for key, value in expected.items())


def slowly(monkeypatch: pytest.MonkeyPatch, seconds: float = 0.2) -> None:
    real = Content.write

    def write_slowly(self: Content, *arguments: Any) -> None:
        time.sleep(seconds)
        real(self, *arguments)

    monkeypatch.setattr(Content, "write", write_slowly)


def asynchronous(folder: Path, **options: Any) -> list[str]:
    config = tiny(folder / "run", checkpoint__asynchronous=True, **options)
    return ["fit", "-c", str(write(folder / "c.yaml", config))]


def test_a_disk_that_is_full_for_a_while(tmp_path: Path, monkeypatch, caplog) -> None:
    real, calls = torch.save, [0]

    def failing(*arguments: Any, **options: Any) -> None:
        calls[0] += 1
        if calls[0] == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(*arguments, **options)

    monkeypatch.setattr(torch, "save", failing)
    done = run(*asynchronous(tmp_path))
    assert done.code == 0, done.err
    events = [row.get("event") for row in read_lines(tmp_path / "run" / "metrics.jsonl")]
    assert events.count("first_save") == 1
    (line,) = (line for line in caplog.messages if "cannot save" in line)
    assert "cannot save step 2 in" in line
    assert "tries again" in line
    checkpoints = tmp_path / "run" / "checkpoints"
    assert sorted(os.listdir(checkpoints)) == ["step-00000004", "step-00000006"]


def test_what_is_not_finite_ends_the_run_at_the_next_save(tmp_path: Path) -> None:
    with attached(CORRUPT("moment", 0, 3)):
        done = run(*asynchronous(tmp_path, checkpoint__every="1 steps"))
    assert done.code == 2
    assert "cannot save step 3: optimizer." in done.err
    assert CheckpointStore(tmp_path / "run" / "checkpoints").steps() == [1, 2]


def test_a_run_that_fails_completes_the_save_under_way(tmp_path: Path, monkeypatch) -> None:
    """The loss is not finite one step after the save began."""
    slowly(monkeypatch)
    with attached(CORRUPT("gradient", 0, 4)):
        done = run(*asynchronous(tmp_path, checkpoint__every="4 steps"))
    assert done.code == 2
    assert "at step 5" in done.err
    assert CheckpointStore(tmp_path / "run" / "checkpoints").newest().path is not None
    assert sorted(losses(tmp_path / "run")) == [1, 2, 3, 4, 5]
