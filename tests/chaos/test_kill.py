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
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from llm_train.testing.fork_server import ForkServer, Job
from tests.chaos.conftest import Unbroken
from tests.chaos.jobs import (
    EVERY,
    RANKS,
    launcher,
    newest,
    require_end,
    require_same,
    require_unbroken,
    step_of,
    steps_of_this_start,
    until,
)
from tests.chaos.trials import trials

TRIALS = {**dict.fromkeys(RANKS, 21), "zero3": 2}
# Kills -> steps, so that a start has some left to make.
STEPS = {3: 32, 10: 96}
MOMENTS = {"save": 45, "step": 40, "time": 15}


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
    unbroken: Unbroken,
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
        before = half_done(tmp_path / "run")
        job = fit()
        wait(job, tmp_path / "run", draw)
        job.send()
        statuses = job.wait()
        assert set(statuses) <= {-9, 0}, (tmp_path / "log.txt").read_text()
        done["kills"] += -9 in statuses
        done["inside_save"] += bool(half_done(tmp_path / "run") - before)
        require_same(newest(tmp_path / "run"), expected)
    require_end(fit(), tmp_path)
    require_unbroken(tmp_path / "run", expected)
    for name, number in done.items():
        record_property(name, number)


def after_a_time(job: Job, run_dir: Path, draw: random.Random) -> None:
    time.sleep(draw.uniform(0, 2.5))


def after_a_step(job: Job, run_dir: Path, draw: random.Random) -> None:
    path = newest(run_dir)
    wanted = (step_of(path) if path else 0) + draw.randint(1, 7)
    until(job, lambda: any(step >= wanted for step in steps_of_this_start(run_dir)))
    time.sleep(draw.uniform(0, 0.01))


def in_a_save(job: Job, run_dir: Path, draw: random.Random) -> None:
    path = newest(run_dir)
    first = (step_of(path) if path else 0) + EVERY
    stages = partial((run_dir / "checkpoints").glob, ".staging-step-*")
    until(job, lambda: any(step_of(stage) >= first for stage in stages()))
    time.sleep(draw.uniform(0, 0.015))


def half_done(run_dir: Path) -> set[tuple[str, int]]:
    """What saves have left that did not end, told apart by when they began."""
    left = (run_dir / "checkpoints").glob(".*")
    return {(path.name, path.stat().st_mtime_ns) for path in left}
