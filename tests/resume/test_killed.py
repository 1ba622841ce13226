"""A run that is killed at random steps and resumed equals an unbroken run, bit for bit."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from llm_train.testing.checkpoints import final_state
from llm_train.testing.configs import tiny, write
from llm_train.testing.fork_server import ForkServer
from llm_train.trainer.logger.records import read_metrics

# Kills -> steps, so that a kill loses up to three steps and the next start has some left to make.
STEPS = {3: 24, 20: 40}
# strategy -> ranks; 0 is a plain process without a launcher
RANKS = {"single": 0, "ddp": 2, "fsdp": 2, "zero1": 2, "zero2": 2, "zero3": 2}
EXACT = ("train/loss", "grad/norm", "optimizer/lr", "val/loss", "progress/tokens")


@pytest.mark.distributed
@pytest.mark.parametrize("strategy", RANKS)
def test_three_kills(strategy: str, fork_server: ForkServer, tmp_path: Path) -> None:
    alongside = strategy in ("single", "fsdp", "zero2")
    kill_and_compare(strategy, fork_server, tmp_path, kills=3, asynchronous=alongside)


@pytest.mark.faults
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("strategy", RANKS)
def test_twenty_kills(
    strategy: str, asynchronous: bool, fork_server: ForkServer, tmp_path: Path
) -> None:
    kill_and_compare(strategy, fork_server, tmp_path, kills=20, asynchronous=asynchronous)


def kill_and_compare(
    strategy: str, fork_server: ForkServer, folder: Path, *, kills: int, asynchronous: bool
) -> None:
    """Trains twice, without and with ``kills`` kills, and compares everything recorded."""
    ranks, steps = RANKS[strategy], STEPS[kills]
    log = folder / "log.txt"
    arguments = {}
    for name in ("alone", "killed"):  # the second one saves while it trains
        config = tiny(
            folder / name,
            steps=steps,
            checkpoint__every="3 steps",
            checkpoint__keep_last=2,
            checkpoint__asynchronous=name == "killed" and asynchronous,
            validate_every="7 steps",
            trainer__strategy=strategy,
        )
        arguments[name] = ["fit", "-c", str(write(folder / f"{name}.yaml", config))]
    assert set(fork_server.run(*arguments["alone"], ranks=ranks, log=log)) == {0}, log.read_text()

    draw = random.Random(f"{strategy}-{kills}")
    landed = 0
    metrics = folder / "killed" / "metrics.jsonl"
    for number, step in enumerate(sorted(draw.sample(range(1, steps - 4), kills))):
        resume = ["--resume", "auto"] if number else []
        statuses = fork_server.run(
            *arguments["killed"],
            *resume,
            ranks=ranks,
            log=log,
            metrics=metrics,
            step=step,
            delay_seconds=draw.uniform(0, 0.03),
        )
        landed += statuses == [-9] * max(1, ranks)
    assert landed == kills, log.read_text()
    finish = fork_server.run(*arguments["killed"], "--resume", "auto", ranks=ranks, log=log)
    assert set(finish) == {0}, log.read_text()

    alone, killed = (recorded(folder / name) for name in arguments)
    assert len(alone) == steps
    assert killed == alone
    first, second = (final_state(folder / name, steps) for name in arguments)
    assert first.keys() == second.keys()
    assert first
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def recorded(run_dir: Path) -> dict[int, dict[str, float]]:
    """Returns the values that must be the same, by step."""
    return {
        record["step"]: {key: record[key] for key in EXACT if key in record}
        for record in read_metrics(run_dir / "metrics.jsonl")
    }
