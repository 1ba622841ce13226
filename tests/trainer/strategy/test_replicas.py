"""One flipped bit in one rank's copy is found, named, and never saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from llm_train.checkpoint.store import CheckpointStore
from llm_train.testing.configs import losses, part, tiny, write
from llm_train.testing.fork_server import ForkServer
from llm_train.trainer.strategy.replicas import _PRIME, Replicas, _odd

WORKER = Path(__file__).parents[2] / "checkpoint" / "corrupt_worker.py"
pytestmark = pytest.mark.distributed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("count", [8, 7])
def test_every_bit_shows(dtype: torch.dtype, count: int) -> None:
    weights = torch.randn(count, dtype=dtype)
    replicas = Replicas({"weights": weights})
    before = replicas.packed(torch.device("cpu"))
    assert before[1] == before[0] ** 2 < _PRIME**2
    octets = weights.view(torch.uint8)
    for position in range(octets.numel() * 8):
        octets[position // 8] ^= 1 << position % 8
        assert not torch.equal(replicas.packed(torch.device("cpu")), before)
        octets[position // 8] ^= 1 << position % 8
    assert torch.equal(replicas.packed(torch.device("cpu")), before)


def test_the_odd_one_is_named() -> None:
    everyone = [(0, [1, 2]), (1, [5, 6]), (0, [1, 3]), (1, [5, 6]), (0, [1, 2]), (1, [5, 6])]
    assert _odd(["a", "b"], everyone) == "b of rank 2 is not that of rank 0"


@pytest.mark.parametrize(
    ("strategy", "ranks", "log_every"),
    [
        ("ddp", 2, 1),
        ("ddp", 2, 100),
        (part("FSDP", replicas=2), 4, 1),
    ],
)
def test_a_flipped_bit_ends_the_run(
    strategy: Any, ranks: int, log_every: int, fork_server: ForkServer, tmp_path: Path
) -> None:
    config = tiny(
        tmp_path / "run",
        trainer__strategy=strategy,
        trainer__log_every_n_steps=log_every,
        checkpoint__every="2 steps",
    )
    log = tmp_path / "log.txt"
    arguments = ["bit", "1", "3", "fit", "-c", str(write(tmp_path / "c.yaml", config))]
    statuses = fork_server.run(*arguments, ranks=ranks, log=log, script=WORKER)
    assert statuses[0] == 2, log.read_text()
    # The bit is flipped before the log point of step 3, or before the save of step 4.
    step = 3 if log_every == 1 else 4
    # Of two copies nobody can tell which is right: the first one counts.
    pair = "of rank 1 is not that of rank 0" if ranks == 2 else "of rank 3 is not that of rank 1"
    assert f"replicas differ at step {step}: embedding.weight" in log.read_text()
    assert pair in log.read_text()
    assert CheckpointStore(tmp_path / "run" / "checkpoints").steps() == [2]


def test_equal_copies_of_replicas_that_train_alone(fork_server: ForkServer, tmp_path: Path) -> None:
    strategy = part("LocalSGD", every=2)
    path = str(write(tmp_path / "c.yaml", tiny(tmp_path / "run", trainer__strategy=strategy)))
    log = tmp_path / "log.txt"
    assert fork_server.run("fit", "-c", path, ranks=2, log=log) == [0, 0], log.read_text()
    assert len(losses(tmp_path / "run")) == 6
