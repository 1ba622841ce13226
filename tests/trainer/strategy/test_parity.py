"""Every strategy computes what one process computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llm_train.testing.configs import tiny, write
from llm_train.testing.fork_server import ForkServer
from llm_train.testing.ranks import llm_train
from llm_train.trainer.logger.records import read_metrics

STEPS = 20
SHARDED = ("ddp", "fsdp", "zero1", "zero2", "zero3")
pytestmark = pytest.mark.distributed


def config(run_dir: Path, strategy: str, **overrides: Any) -> dict[str, Any]:
    settings = {
        "model__network__init_args__dropout": 0.0,
        "checkpoint__every": "10 steps",
        "validate_every": "10 steps",
        # This is below every norm of this run, so that clipping acts on each step.
        "trainer__gradient_clip_val": 0.25,
    }
    return tiny(run_dir, steps=STEPS, trainer__strategy=strategy, **{**settings, **overrides})


def curve(run_dir: Path, key: str) -> list[float]:
    return [r[key] for r in read_metrics(run_dir / "metrics.jsonl") if key in r]


def train(
    fork_server: ForkServer, folder: Path, strategy: str, *options: str, **overrides: Any
) -> Path:
    """Two ranks, but one process without a launcher for ``single``; returns the run."""
    path = write(folder / "c.yaml", config(folder / "run", strategy, **overrides))
    log, ranks = folder / "log.txt", 0 if strategy == "single" else 2
    statuses = fork_server.run("fit", "-c", str(path), *options, ranks=ranks, log=log)
    assert set(statuses) == {0}, log.read_text()
    return folder / "run"


@pytest.fixture(scope="module")
def alone(fork_server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(fork_server, tmp_path_factory.mktemp("alone"), "single")


@pytest.mark.parametrize("strategy", SHARDED)
def test_two_ranks_equal_one_process(
    strategy: str, alone: Path, fork_server: ForkServer, tmp_path: Path
) -> None:
    run_dir = train(fork_server, tmp_path, strategy)
    for key in ("train/loss", "grad/norm", "val/loss"):
        expected = curve(alone, key)
        assert len(expected) == (2 if key == "val/loss" else STEPS)
        assert curve(run_dir, key) == pytest.approx(expected, rel=1e-5)
    assert min(curve(alone, "grad/norm")) > 0.25  # clipping had an effect


@pytest.mark.parametrize(
    ("strategy", "policy"),
    [
        # The default suite tries each policy, and each way of gathering weights, once.
        pytest.param("ddp", "EveryBlock", marks=pytest.mark.slow),
        pytest.param("fsdp", "EveryBlock", marks=pytest.mark.slow),
        ("fsdp", "Selective"),
        ("zero3", "EveryBlock"),
    ],
)
def test_recomputation_changes_no_strategy(
    strategy: str, policy: str, alone: Path, fork_server: ForkServer, tmp_path: Path
) -> None:
    run_dir = train(fork_server, tmp_path, strategy, model__recompute__class_path=policy)
    expected = curve(alone, "train/loss")
    assert curve(run_dir, "train/loss") == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "strategy",
    [
        pytest.param(name, marks=pytest.mark.slow) if name == "zero1" else name  # it casts as zero2
        for name in ("single", *SHARDED)
    ],
)
def test_mixed_precision_stays_near_fp32(
    strategy: str, alone: Path, fork_server: ForkServer, tmp_path: Path
) -> None:
    """bfloat16 keeps 8 bits, so a loss of about 4 may differ in the second decimal."""
    run_dir = train(fork_server, tmp_path, strategy, trainer__precision="bf16-mixed")
    losses, exact = curve(run_dir, "train/loss"), curve(alone, "train/loss")
    assert losses == pytest.approx(exact, rel=5e-3)
    assert losses != pytest.approx(exact, rel=1e-6)


def test_torchrun_itself(alone: Path, tmp_path: Path) -> None:
    """The real launcher starts a run that names no strategy; with two ranks, auto is DDP."""
    path = write(tmp_path / "c.yaml", config(tmp_path / "run", "auto"))
    done = llm_train("fit", "-c", str(path), ranks=2)
    assert "2 ranks x 2 micro-batches" in done.stdout
    assert curve(tmp_path / "run", "train/loss") == pytest.approx(
        curve(alone, "train/loss"), rel=1e-5
    )


@pytest.mark.parametrize(
    "strategy", ["single", pytest.param("ddp", marks=pytest.mark.slow), "fsdp"]
)
def test_checkpoints_load_under_every_strategy(
    strategy: str, alone: Path, fork_server: ForkServer, tmp_path: Path
) -> None:
    """A run begun by one process continues under any strategy, optimizer state included."""
    start = str(alone / "checkpoints" / "step-00000010")
    run_dir = train(fork_server, tmp_path, strategy, "--resume", start)
    expected = curve(alone, "train/loss")[10:]
    tolerance = 0.0 if strategy == "single" else 1e-6
    assert curve(run_dir, "train/loss") == pytest.approx(expected, rel=tolerance, abs=0)
