"""A rank that runs out of memory ends the job with one line, and the next start halves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llm_train.testing.command import run
from llm_train.testing.configs import losses, tiny, write
from llm_train.testing.fork_server import ForkServer
from llm_train.testing.ranks import environment

WORKER = Path(__file__).parents[1] / "checkpoint" / "corrupt_worker.py"


def config(tmp_path: Path, name: str, per_device: int, what_then: str = "halve") -> str:
    """Without dropout, whose masks are drawn for each micro-batch."""
    batch = {"tokens": 128, "sequence": 16, "per_device": per_device}
    settings: dict[str, Any] = tiny(tmp_path / name, batch=batch | {"on_out_of_memory": what_then})
    settings["model"]["network"]["init_args"]["dropout"] = 0.0
    return str(write(tmp_path / f"{name}.yaml", settings))


@pytest.mark.distributed
def test_the_next_start_halves_and_keeps_the_losses(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    """Saved after step 2, out of memory in step 4 on one rank of two."""
    halved, whole = config(tmp_path, "halved", 4), config(tmp_path, "whole", 4)
    log = tmp_path / "log.txt"
    worker: dict[str, Any] = {"ranks": 2, "log": log, "script": WORKER}
    command = ["memory", "1", "3", "fit", "-c", halved]
    assert 0 not in fork_server.run(*command, **worker), log.read_text()
    assert "rank 1 ran out of memory in step 4 with batch.per_device=4" in log.read_text()
    assert "start again with --resume auto, which takes 2" in log.read_text()
    late = ["late", "1", *command[2:]]
    assert fork_server.run(*late, "--resume", "auto", **worker)[0] == 2, log.read_text()
    assert "some ranks would make 1 micro-batches a step and others 2" in log.read_text()
    assert fork_server.run(*command, "--resume", "auto", **worker) == [0, 0], log.read_text()
    assert "batch.per_device=2 instead of 4" in log.read_text()
    assert fork_server.run("fit", "-c", whole, ranks=2, log=log) == [0, 0], log.read_text()
    expected = losses(tmp_path / "whole")
    assert losses(tmp_path / "halved") == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("per_device", "remedy"), [(4, "set batch.per_device=2"), (1, "none is less")]
)
def test_one_line_says_what_to_set(
    per_device: int, remedy: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from llm_train.model.task import Task

    def training_step(*_: object) -> None:
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate")

    monkeypatch.setattr(Task, "training_step", training_step)
    outcome = run("fit", "-c", config(tmp_path, "run", per_device, "raise"))
    assert outcome.code == 2
    (line,) = outcome.errors
    assert remedy in line
    assert not (tmp_path / "run" / "micro_batch.json").exists()


@pytest.mark.slow
def test_a_single_process_starts_again_by_itself(tmp_path: Path) -> None:
    command = ["memory", "0", "3", "fit", "-c", config(tmp_path, "run", 8)]
    done = subprocess.run(
        [sys.executable, str(WORKER), *command],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "batch.per_device=4 instead of 8" in done.stdout
    assert "batch.per_device=2 instead of 8" in done.stdout
    assert list(losses(tmp_path / "run")) == [1, 2, 3, 4, 5, 6]
    left = json.loads((tmp_path / "run" / "micro_batch.json").read_text())
    assert (left["per_device"], left["instead"]) == (8, 2)
