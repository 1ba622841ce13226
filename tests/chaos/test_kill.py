"""SIGKILL of the whole job at any time: whoever starts it again gets the unbroken run, bit for bit.

Each start of a trial is killed in one of three ways: after a random time, in which it may not have
got further than its imports; a random time after a random step; or in the middle of a save, a
random time after its staging folder is there. After each kill the newest complete checkpoint must
be that of the unbroken run in every bit: weights, optimizer, random states, open sums, position.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_train.checkpoint import dcp, manifest
from llm_train.checkpoint.store import CheckpointStore
from llm_train.testing.checkpoints import tensors_of
from llm_train.testing.configs import tiny, write
from llm_train.testing.fork_server import ForkServer, Job
from llm_train.trainer.logger.records import read_lines, read_metrics
from tests.chaos.trials import trials

# strategy -> ranks; 0 is a plain process without a launcher
RANKS = {"single": 0, "ddp": 2, "fsdp": 2, "zero1": 2, "zero2": 2, "zero3": 2}
TRIALS = {**dict.fromkeys(RANKS, 21), "zero3": 2}
EXACT = ("train/loss", "grad/norm", "optimizer/lr", "val/loss", "progress/tokens")
# Kills -> steps, so that a start has some left to make.
STEPS = {3: 24, 10: 60}
MOMENTS = {"save": 4, "step": 5, "time": 1}
PATIENCE_SECONDS = 120.0

Fit = Callable[..., Job]


@pytest.fixture(scope="module")
def unbroken(
    fork_server: ForkServer, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, int], Path]:
    """The folder of a run that nobody interrupts, made once for all trials of a strategy."""
    made: dict[tuple[str, int], Path] = {}

    def run(strategy: str, steps: int) -> Path:
        if (strategy, steps) not in made:
            folder = tmp_path_factory.mktemp("unbroken")
            require_end(launcher(fork_server, folder, strategy, steps)(), folder)
            made[strategy, steps] = folder / "run"
        return made[strategy, steps]

    return run


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("strategy", "seed"),
    sorted(
        (trial for s in RANKS for trial in trials(f"kill-{s}", TRIALS[s], s, short=1)),
        key=lambda trial: trial.values[-1],  # all strategies in turn
    ),
)
def test_kill(
    strategy: str,
    seed: int,
    fork_server: ForkServer,
    unbroken: Callable[[str, int], Path],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    draw = random.Random(f"kill-{strategy}-{seed}")
    kills = 10 if seed else 3
    expected = unbroken(strategy, STEPS[kills])
    fit = launcher(fork_server, tmp_path, strategy, STEPS[kills])
    done: Counter[str] = Counter()
    for _ in range(kills):
        (moment,) = draw.choices(list(MOMENTS), list(MOMENTS.values()))
        wait = {"save": in_a_save, "step": after_a_step, "time": after_a_time}[moment]
        job = fit()
        wait(job, tmp_path / "run", draw)
        job.send()
        statuses = job.wait()
        assert set(statuses) <= {-9, 0}, (tmp_path / "log.txt").read_text()
        done["kills"] += -9 in statuses
        done["inside_save"] += bool(list((tmp_path / "run" / "checkpoints").glob(".*")))
        require_same(newest(tmp_path / "run"), expected)
    require_end(fit(), tmp_path)
    assert recorded(tmp_path / "run") == recorded(expected)
    last = newest(tmp_path / "run")
    require_same(last, expected)
    assert last is not None
    assert last.name == f"step-{STEPS[kills]:08d}"
    for name, number in done.items():
        record_property(name, number)


def launcher(fork_server: ForkServer, folder: Path, strategy: str, steps: int) -> Fit:
    """What a supervisor would start again and again: the same command each time."""
    ranks = RANKS[strategy]
    config = tiny(
        folder / "run",
        steps=steps,
        batch__per_device=1 if ranks else 2,  # four micro-batches a step
        checkpoint__every="5 steps",
        validate_every="7 steps",
        trainer__strategy=strategy,
    )
    arguments = ["fit", "-c", str(write(folder / "c.yaml", config)), "--resume", "auto"]
    return partial(fork_server.start, *arguments, ranks=ranks, log=folder / "log.txt")


def require_end(job: Job, folder: Path) -> None:
    assert set(job.wait()) == {0}, (folder / "log.txt").read_text()


# --- when to kill ---------------------------------------------------------------------------------


def after_a_time(job: Job, run_dir: Path, draw: random.Random) -> None:
    time.sleep(draw.uniform(0, 1.5))


def after_a_step(job: Job, run_dir: Path, draw: random.Random) -> None:
    path = newest(run_dir)
    wanted = (step_of(path) if path else 0) + draw.randint(1, 6)
    until(job, lambda: any(step >= wanted for step in steps_of_this_start(run_dir)))
    time.sleep(draw.uniform(0, 0.03))


def in_a_save(job: Job, run_dir: Path, draw: random.Random) -> None:
    path = newest(run_dir)
    first = (step_of(path) if path else 0) + 5 * draw.randint(1, 2)
    stages = partial((run_dir / "checkpoints").glob, ".staging-step-*")
    until(job, lambda: any(step_of(stage) >= first for stage in stages()))
    time.sleep(draw.uniform(0, 0.03))


def until(job: Job, true: Callable[[], bool]) -> None:
    """Returns when something is true, or when a rank has ended by itself."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while job.running and not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def steps_of_this_start(run_dir: Path) -> Iterator[int]:
    metrics = run_dir / "metrics.jsonl"
    for line in reversed(read_lines(metrics) if metrics.exists() else []):
        if line.get("event") in ("start", "resume"):
            return
        yield line["step"]


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
    other = expected / "checkpoints" / checkpoint.name
    first, second = (manifest.read(path) for path in (checkpoint, other))
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


def recorded(run_dir: Path) -> dict[int, dict[str, Any]]:
    """What is in the metrics and must be the same, by step."""
    return {
        record["step"]: {key: record[key] for key in EXACT if key in record}
        for record in read_metrics(run_dir / "metrics.jsonl")
    }
