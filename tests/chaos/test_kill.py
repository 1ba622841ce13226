"""SIGKILL of the whole job at any time: whoever starts it again gets the unbroken run, bit for bit.

Each start of a trial is killed in one of three ways: after a random time, in which it may not have
got further than its imports; a random time after a random step; or in the middle of a save, a
random time after its staging folder is there. After each kill the newest complete checkpoint must
be that of the unbroken run in every bit: weights, optimizer, random states, open sums, position.
Every second trial of a strategy saves alongside training; the unbroken run never does.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.conftest import Start, Unbroken
from tests.chaos.jobs import RANKS, kill, newest, require_end, require_same, require_unbroken
from tests.chaos.trials import trials

TRIALS = {**dict.fromkeys(RANKS, 21), "zero3": 2}
# DDP saves what one process does, and stages 1 and 2 lay parameters out in one of the ways of 3.
SHORT = ("single", "fsdp", "zero3")
# Kills -> steps, so that a start has some left to make.
STEPS = {3: 32, 10: 96}
MOMENTS = {"save": 45, "step": 40, "time": 15}


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("strategy", "seed"),
    sorted(
        (t for s in RANKS for t in trials(f"kill-{s}", TRIALS[s], s, short=int(s in SHORT))),
        key=lambda trial: trial.values[-1],  # all strategies in turn
    ),
)
def test_kill(
    strategy: str,
    seed: int,
    start: Start,
    unbroken: Unbroken,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    draw = random.Random(f"kill-{strategy}-{seed}")
    kills = 10 if seed else 3
    expected = unbroken(strategy, STEPS[kills])
    asynchronous = (seed + list(RANKS).index(strategy)) % 2 == 1
    fit = start(tmp_path, strategy, STEPS[kills], checkpoint__asynchronous=asynchronous)
    done: Counter[str] = Counter()
    for _ in range(kills):
        (moment,) = draw.choices(list(MOMENTS), list(MOMENTS.values()))
        found = kill(fit, tmp_path / "run", moment, draw)
        assert set(found.statuses) <= {-9, 0}, (tmp_path / "log.txt").read_text()
        done["kills"] += -9 in found.statuses
        done["inside_save"] += found.inside_save
        done["asynchronous"] += asynchronous and -9 in found.statuses
        require_same(newest(tmp_path / "run"), expected)
    require_end(fit(), tmp_path)
    require_unbroken(tmp_path / "run", expected)
    for name, number in done.items():
        record_property(name, number)
