"""Tests what happens at log points, between them, and when a signal arrives."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path

import pytest

from llm_train.testing.configs import losses, tiny, write
from llm_train.testing.fork_server import ForkServer
from llm_train.trainer.callbacks.progress import describe
from llm_train.trainer.logger.records import read_lines, read_metrics

COUNT = Path(__file__).with_name("count_synchronisations.py")


@pytest.mark.distributed
@pytest.mark.parametrize(("strategy", "ranks"), [("single", 0), ("ddp", 2), ("fsdp", 2)])
def test_no_host_synchronisation_between_log_points(
    strategy: str, ranks: int, fork_server: ForkServer, tmp_path: Path
) -> None:
    """Every call that would wait for a device is counted from the first step to the last."""
    config = tiny(
        tmp_path / "run",
        steps=12,
        checkpoint__every="0 steps",
        trainer__strategy=strategy,
        trainer__log_every_n_steps=6,
    )
    path = write(tmp_path / "c.yaml", config)
    log = tmp_path / "log.txt"
    arguments = [str(tmp_path / "counts"), "fit", "-c", str(path)]
    statuses = fork_server.run(*arguments, ranks=ranks, log=log, script=COUNT)
    assert set(statuses) == {0}, log.read_text()
    for rank in range(max(1, ranks)):
        counts = json.loads((tmp_path / f"counts-{rank}.json").read_text())
        # There is one packed read at each of the two log points and nothing else in 12 steps of 4
        # micro-batches.
        assert counts == {"tolist": 2}


def test_a_log_point_averages_its_interval(fork_server: ForkServer, tmp_path: Path) -> None:
    found = {}
    for every in (1, 3):
        config = tiny(tmp_path / f"every-{every}", trainer__log_every_n_steps=every)
        path = write(tmp_path / f"{every}.yaml", config)
        log = tmp_path / "log.txt"
        assert fork_server.run("fit", "-c", str(path), ranks=0, log=log) == [0], log.read_text()
        found[every] = losses(tmp_path / f"every-{every}")
    assert list(found[3]) == [3, 6]
    for last in (3, 6):
        mean = math.fsum(found[1][step] for step in range(last - 2, last + 1)) / 3
        assert found[3][last] == pytest.approx(mean, rel=1e-12)


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("ranks", "number"), [(0, signal.SIGTERM), (0, signal.SIGINT), (2, signal.SIGTERM)]
)
def test_a_signal_saves_and_the_run_continues_as_if_nothing_had_happened(
    ranks: int, number: signal.Signals, fork_server: ForkServer, tmp_path: Path
) -> None:
    """With two ranks only one of them gets the signal."""
    paths = {}
    for name in ("alone", "stopped"):
        config = tiny(
            tmp_path / name, steps=60, checkpoint__every="0 steps", validate_every="50 steps"
        )
        paths[name] = str(write(tmp_path / f"{name}.yaml", config))
    log = tmp_path / "log.txt"
    statuses = fork_server.run(
        "fit",
        "-c",
        paths["stopped"],
        ranks=ranks,
        log=log,
        metrics=tmp_path / "stopped" / "metrics.jsonl",
        step=8,
        signal=number,
        victims=[0],
    )
    assert statuses == [128 + number] * max(1, ranks), log.read_text()
    assert f"stopped by {number.name} after step" in log.read_text()
    for name, resume in (("stopped", ["--resume", "auto"]), ("alone", [])):
        arguments = ["fit", "-c", paths[name], *resume]
        assert set(fork_server.run(*arguments, ranks=ranks, log=log)) == {0}, log.read_text()
    alone, stopped = (losses(tmp_path / name) for name in paths)
    assert len(alone) == 60
    assert stopped == alone
    # Stopping must not cost a validation: whoever sent the signal may not wait for one.
    validated = [
        r["step"] for r in read_lines(tmp_path / "stopped" / "metrics.jsonl") if "val/loss" in r
    ]
    assert validated == [50, 60]


def test_a_loss_that_is_not_finite_ends_the_run_and_spares_the_checkpoints(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    config = tiny(
        tmp_path / "run",
        steps=40,
        checkpoint__every="1 steps",
        model__optimizer__init_args__learning_rate=1e30,
        model__optimizer__init_args__weight_decay=0.0,
        model__optimizer__init_args__eps=1e-30,
    )
    del config["trainer"]["gradient_clip_val"]
    path = write(tmp_path / "c.yaml", config)
    log = tmp_path / "log.txt"
    assert fork_server.run("fit", "-c", str(path), ranks=0, log=log) == [2]
    last = log.read_text().splitlines()[-1]
    assert last.startswith("llm-train: error: train/loss=")
    assert "resume from a checkpoint before it" in last
    metrics = [r for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if "train/loss" in r]
    bad = next(r["step"] for r in metrics if not math.isfinite(r["train/loss"] + r["grad/norm"]))
    saved = [int(p.name[5:]) for p in (tmp_path / "run" / "checkpoints").iterdir()]
    assert max(saved) < bad


def test_one_line_of_what_people_watch() -> None:
    assert describe({}) == ""
    assert describe({"train/loss": 1.0}) == "loss 1.0000"
