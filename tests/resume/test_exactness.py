"""Tests what else could make a resumed run differ from an unbroken one, or lose its files."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest

from llm_train.checkpoint.store import CheckpointStore
from llm_train.run import training
from llm_train.testing.command import run
from llm_train.testing.configs import tiny, write
from llm_train.trainer.logger.records import read_metrics


@pytest.fixture
def with_callback(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a callback into the next Trainer, before all others."""

    def install(callback: pl.Callback) -> None:
        build = training.build_trainer

        def built(*args: Any, **kwargs: Any) -> pl.Trainer:
            trainer = build(*args, **kwargs)
            trainer.callbacks.insert(0, callback)
            monkeypatch.setattr(training, "build_trainer", build)
            return trainer

        monkeypatch.setattr(training, "build_trainer", built)

    return install


def losses(run_dir: Path) -> dict[int, float]:
    records = read_metrics(run_dir / "metrics.jsonl")
    return {r["step"]: r["train/loss"] for r in records if "train/loss" in r}


def test_a_stop_between_micro_batches_waits_for_the_step(
    with_callback: Any, tmp_path: Path
) -> None:
    """The request comes as from a Timer: at micro-batch 14 of 24, in the middle of step 4."""

    class StopAt(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
            trainer.should_stop |= args[-1] == 13

    paths = {n: str(write(tmp_path / f"{n}.yaml", tiny(tmp_path / n))) for n in ("whole", "cut")}
    assert run("fit", "-c", paths["whole"]).code == 0
    with_callback(StopAt())
    stopped = run("fit", "-c", paths["cut"])
    assert "stopped by a callback after step 4" in stopped.out
    assert run("fit", "-c", paths["cut"], "--resume", "auto").code == 0
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_a_gradient_that_is_not_finite_is_never_saved(with_callback: Any, tmp_path: Path) -> None:
    """At a log point the sums are empty, but the norm still shows it."""

    class Poison(pl.Callback):
        def on_before_optimizer_step(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
            if trainer.global_step == 3:
                next(module.network.parameters()).grad.fill_(float("inf"))

    config = tiny(tmp_path / "run", trainer__log_every_n_steps=2, checkpoint__keep_last=1)
    with_callback(Poison())
    outcome = run("fit", "-c", str(write(tmp_path / "c.yaml", config)))
    assert outcome.code == 2
    assert "grad/norm=inf at step 4: the run cannot recover" in outcome.err
    assert CheckpointStore(tmp_path / "run" / "checkpoints").steps() == [2]


def test_a_fresh_run_moves_only_what_runs_write(tmp_path: Path) -> None:
    directory = tmp_path / "home"
    directory.mkdir()
    file = write(directory / "mine.yaml", tiny(directory, steps=4, checkpoint__every="0 steps"))
    for _ in range(2):
        assert run("fit", "-c", str(file)).code == 0
    assert file.is_file()
    (earlier,) = (directory / "earlier").iterdir()
    written = {"checkpoints", "metrics.jsonl", "ledger.jsonl", "config.yaml", "derived.json"}
    assert {path.name for path in earlier.iterdir()} == written


def test_resuming_from_elsewhere_spares_the_run_that_was_there(tmp_path: Path) -> None:
    files = {n: str(write(tmp_path / f"{n}.yaml", tiny(tmp_path / n))) for n in ("one", "two")}
    for file in files.values():
        assert run("fit", "-c", file).code == 0
    start = str(tmp_path / "one" / "checkpoints" / "step-00000002")
    assert run("fit", "-c", files["two"], "--resume", start).code == 0
    (earlier,) = (tmp_path / "two" / "earlier").iterdir()
    assert CheckpointStore(earlier / "checkpoints").steps() == [2, 4, 6]
    assert list(losses(tmp_path / "two")) == [3, 4, 5, 6]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("--seed=8", "seed is 8 but"),
        ("--batch.sequence=8", "batch.sequence is 8 but"),
        ("--model.optimizer=MuonAdamW", "model.optimizer is MuonAdamW but"),
    ],
)
def test_what_would_move_the_position_is_refused(change: str, message: str, tmp_path: Path) -> None:
    file = str(write(tmp_path / "c.yaml", tiny(tmp_path / "run", steps=4)))
    assert run("fit", "-c", file).code == 0
    again = run("fit", "-c", file, "--resume", "auto", "--budget=6 steps", change)
    assert again.code == 2
    (line,) = again.errors
    assert line.startswith(message)


def test_callback_states_that_cannot_come_back_are_found_when_saving(
    with_callback: Any, tmp_path: Path
) -> None:
    class Clock(pl.Callback):
        def state_dict(self) -> dict[str, Any]:
            return {"spent": datetime.timedelta(seconds=1)}

    with_callback(Clock())
    outcome = run("fit", "-c", str(write(tmp_path / "c.yaml", tiny(tmp_path / "run"))))
    assert outcome.code == 2
    assert "trainer.callbacks: the state_dict of a callback holds objects" in outcome.err
