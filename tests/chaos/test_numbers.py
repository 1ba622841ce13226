"""A number that goes wrong on one rank: all ranks decide alike, and no checkpoint ever holds it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llm_train.checkpoint.store import CheckpointStore
from llm_train.testing.checkpoints import tensors_of
from llm_train.testing.configs import losses, part, tiny, write
from llm_train.testing.fork_server import ForkServer
from tests.chaos.jobs import RANKS
from tests.chaos.trials import trials

WORKER = Path(__file__).parents[1] / "checkpoint" / "corrupt_worker.py"
STEPS = 10
# What goes wrong -> where a test can make it: with ZeRO, gradients and weights lie in flat tensors.
PLACES = {
    "gradient": ["single", "ddp", "fsdp"],
    "weight": ["single", "ddp", "fsdp"],
    "moment": ["single", "ddp", "fsdp", "zero1", "zero2", "zero3"],
    "bit": ["ddp"],
}


@pytest.mark.distributed
@pytest.mark.parametrize("seed", trials("numbers", 60, short=1))
def test_numbers(
    seed: int,
    fork_server: ForkServer,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    draw = random.Random(f"numbers-{seed}")
    what = draw.choice(list(PLACES))
    strategy = draw.choice(PLACES[what])
    ranks, step = RANKS[strategy], draw.randint(2, STEPS - 2)
    guarded = what == "gradient" and draw.random() < 0.7
    every = draw.randint(1, 2)
    config = tiny(
        tmp_path / "run",
        steps=STEPS,
        checkpoint__every=f"{every} steps",
        checkpoint__keep_last=1,
        trainer__strategy=strategy,
        trainer__log_every_n_steps=draw.choice([1, 2, 100]),
        trainer__callbacks=[part("Guard", limit=1)] if guarded else [],
    )
    arguments = ("fit", "-c", str(write(tmp_path / "c.yaml", config)))
    victim, log = draw.randrange(max(1, ranks)), tmp_path / "log.txt"
    statuses = fork_server.run(
        *(what, str(victim), str(step), *arguments), ranks=ranks, log=log, script=WORKER
    )
    if guarded:  # the step is left out, by all
        assert set(statuses) == {0}, log.read_text()
        assert step + 1 not in losses(tmp_path / "run")
    else:
        assert statuses[0] == 2, log.read_text()
        assert 0 not in statuses
    saved = CheckpointStore(tmp_path / "run" / "checkpoints")
    if step == every:  # there was no good one before
        assert not list(saved.root.iterdir())
        return
    (good,) = saved.root.iterdir()
    assert saved.newest().path == good
    for key, tensor in tensors_of(good).items():
        assert torch.isfinite(tensor).all(), key
    assert (good.name == f"step-{STEPS:08d}") == guarded
    record_property("checkpoints", 1)
