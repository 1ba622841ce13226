"""Signals to any of two or four ranks in any phase: all end together, soon, and have saved."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import pytest

from llm_train.checkpoint.store import CheckpointStore
from llm_train.testing.configs import tiny, write
from llm_train.testing.fork_server import ForkServer
from tests.chaos.trials import trials

# Half a second in the phase that it is told, and a file when rank 0 is in it.
SLOW = Path(__file__).parents[1] / "trainer" / "callbacks" / "slow_phases.py"
PHASES = ["start-up", "step", "validation", "save", "end"]
SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]
# Every set of ranks in every phase, in an order that mixes them: 90, so that 150 repeat some.
CASES = [
    (ranks, victims, phase)
    for ranks in (2, 4)
    for number in range(1, ranks + 1)
    for victims in combinations(range(ranks), number)
    for phase in PHASES
]
random.Random("signals").shuffle(CASES)
SECONDS = 1.0 + 5.0  # a step and a save, and what the issue of a signal may take


@pytest.mark.distributed
@pytest.mark.parametrize("seed", trials("signals", 150, short=1))
def test_signals(
    seed: int,
    fork_server: ForkServer,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    draw = random.Random(f"signals-{seed}")
    ranks, victims, phase = CASES[seed % len(CASES)]
    number, strategy = draw.choice(SIGNALS), draw.choice(["ddp", "fsdp", "zero1"])
    config = tiny(
        tmp_path / "run",
        steps=8,
        checkpoint__every="2 steps",
        validate_every="4 steps",
        trainer__strategy=strategy,
        trainer__log_every_n_steps=500,
        data__source__init_args__held_out_length=1000,
        batch__per_device=1,
    )
    arguments = ("fit", "-c", str(write(tmp_path / "c.yaml", config)))
    log, now = tmp_path / "log.txt", tmp_path / "now"
    statuses = fork_server.run(
        *(phase, str(now), *arguments),
        ranks=ranks,
        log=log,
        script=SLOW,
        file=now,
        signal=number,
        victims=victims,
        delay_seconds=draw.uniform(0, 0.4),
    )
    # Nothing is left to end at the end, and a notice before training is not taken for one.
    ignored = phase == "end" or (phase == "start-up" and number == signal.SIGUSR1)
    assert statuses == [0 if ignored else 128 + number] * ranks, log.read_text()
    assert "Traceback" not in log.read_text()
    if not ignored:
        assert fork_server.seconds < SECONDS
        record_property("exit_seconds", round(fork_server.seconds, 2))
    found = CheckpointStore(tmp_path / "run" / "checkpoints").newest()
    assert found.skipped == []
    assert found.path is not None or phase == "start-up"
    record_property("what", f"{number.name} to {victims} of {ranks} ranks, {phase}, {strategy}")
