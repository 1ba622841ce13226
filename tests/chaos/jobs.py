"""A small run that is started again and again, and what must come out of it."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from llm_train.checkpoint import dcp, manifest
from llm_train.checkpoint.store import CheckpointStore
from llm_train.testing.checkpoints import tensors_of
from llm_train.testing.configs import tiny, write
from llm_train.testing.fork_server import ForkServer, Job
from llm_train.trainer.logger.records import read_metrics

# strategy -> ranks; 0 is a plain process without a launcher
RANKS = {"single": 0, "ddp": 2, "fsdp": 2, "zero1": 2, "zero2": 2, "zero3": 2}
EXACT = ("train/loss", "grad/norm", "optimizer/lr", "val/loss", "progress/tokens")
EVERY = 8  # steps from one save to the next


def launcher(
    fork_server: ForkServer, folder: Path, strategy: str, steps: int, **overrides: Any
) -> Callable[..., Job]:
    """What a supervisor would start again and again: the same command each time."""
    arguments, ranks = arguments_of(folder, strategy, steps, **overrides), RANKS[strategy]
    return partial(fork_server.start, *arguments, ranks=ranks, log=folder / "log.txt")


def arguments_of(folder: Path, strategy: str, steps: int, **overrides: Any) -> list[str]:
    """Of a run in a folder."""
    config = tiny(
        folder / "run",
        steps=steps,
        batch__per_device=1 if RANKS[strategy] else 2,  # four micro-batches a step
        checkpoint__every=f"{EVERY} steps",
        validate_every="7 steps",
        trainer__strategy=strategy,
        **overrides,
    )
    return ["fit", "-c", str(write(folder / "c.yaml", config)), "--resume", "auto"]


def require_end(job: Job, folder: Path) -> None:
    assert set(job.wait()) == {0}, (folder / "log.txt").read_text()


class Progress:
    """The steps that a run logs from now on; asked all the time, it reads what is new."""

    def __init__(self, run_dir: Path) -> None:
        self._path, self._last = run_dir / "metrics.jsonl", 0
        before = self._path.read_bytes() if self._path.exists() else b""
        self._read = before.rfind(b"\n") + 1  # what a kill has torn is cut off by the next start

    @property
    def last(self) -> int:
        """The highest of them; 0 if there is none."""
        if self._path.exists() and self._path.stat().st_size > self._read:
            with open(self._path, "rb") as file:
                file.seek(self._read)
                lines, newline, _ = file.read().rpartition(b"\n")
            self._read += len(lines + newline)
            for record in map(json.loads, filter(None, lines.split(b"\n"))):
                self._last = max(self._last, 0 if "event" in record else record["step"])
        return self._last


class Killed(NamedTuple):
    """What became of a start that was killed: exit statuses, and whether it was inside a save."""

    statuses: list[int]
    inside_save: bool


def kill(fit: Callable[[], Job], run_dir: Path, moment: str, draw: random.Random) -> Killed:
    """Starts a run and kills all of it.

    Args:
        fit: starts it.
        run_dir: its folder.
        moment: "time" for any, "step" soon after one of the next, "save" inside a save.
        draw: where the random numbers come from.
    """
    saved = newest(run_dir)
    reached, steps = step_of(saved) if saved else 0, Progress(run_dir)

    def saving() -> bool:  # what an earlier start left is gone before the first step
        return bool(steps.last) and any((run_dir / "checkpoints").glob(".*"))

    job = fit()
    if moment == "save":
        wanted = reached + EVERY * draw.randint(0, 1) + 1
        job.until(lambda: steps.last >= wanted and saving())
        time.sleep(draw.uniform(0, 0.015))
    elif moment == "step":
        wanted = reached + draw.randint(1, 20)
        job.until(lambda: steps.last >= wanted)
        time.sleep(draw.uniform(0, 0.01))
    else:
        time.sleep(draw.uniform(0, 2.5))
    job.send()
    return Killed(job.wait(), saving())


# --- what must be the same ------------------------------------------------------------------------


def step_of(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def newest(run_dir: Path) -> Path | None:
    found = CheckpointStore(run_dir / "checkpoints").newest()
    assert found.skipped == []
    return found.path


def require_same(checkpoint: Path | None, expected: Path) -> None:
    """Compares a checkpoint with the one of the unbroken run at the same step, bit by bit."""
    if checkpoint is None:
        return
    first = manifest.read(checkpoint)
    other = expected / "checkpoints" / f"step-{first.metadata['step']:08d}"
    second = manifest.read(other)
    assert first.metadata == second.metadata
    assert first.files.keys() == second.files.keys()
    # The configuration names the run's folder; the order of tensors in a file is DCP's affair.
    for name in first.files.keys() - {"config.yaml"}:
        if not name.startswith("state/"):
            assert (checkpoint / name).read_bytes() == (other / name).read_bytes(), name
    found, wanted = tensors_of(checkpoint), tensors_of(other)
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        assert torch.equal(bits(tensor), bits(wanted[name])), name
    assert dcp.read_scalars(checkpoint / "state") == dcp.read_scalars(other / "state")


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def require_unbroken(run_dir: Path, expected: Path) -> None:
    """Compares a run that has ended with an unbroken one: metrics by step, and the last state."""
    assert recorded(run_dir) == recorded(expected)
    last = newest(run_dir)
    assert last is not None
    assert last.name == max(path.name for path in (expected / "checkpoints").iterdir())
    require_same(last, expected)


def recorded(run_dir: Path) -> dict[int, dict[str, Any]]:
    """What is in the metrics and must be the same, by step."""
    return {
        record["step"]: {key: record[key] for key in EXACT if key in record}
        for record in read_metrics(run_dir / "metrics.jsonl")
    }
