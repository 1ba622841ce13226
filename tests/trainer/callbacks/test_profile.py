"""Which steps are recorded, and what real runs on a CPU leave behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llm_train.errors import ConfigError
from llm_train.run import training
from llm_train.settings import Settings
from llm_train.testing import command
from llm_train.testing.configs import tiny, write
from llm_train.testing.fork_server import Nursery
from llm_train.trainer.callbacks.breakdown import (
    HEAD_RANGE,
    LOADER_RANGE,
    UPDATE_MARK,
    break_down,
    read_events,
)
from llm_train.trainer.callbacks.kinds import KINDS
from llm_train.trainer.callbacks.profile import FIRST_STEP, STEPS, first_step
from llm_train.trainer.logger.records import read_metrics

ACCUMULATION = 4  # of the tiny run


# --- which steps ----------------------------------------------------------------------------------


def test_the_steps_lie_between_validations_and_checkpoints() -> None:
    assert first_step(0, FIRST_STEP + STEPS - 1, {"a": 0}) == FIRST_STEP
    assert first_step(100, 1000, {"a": 0}) == 100 + FIRST_STEP
    for every in ({"a": 4}, {"a": 4, "b": 5}, {"a": 5, "b": 7}, {"a": 1000, "b": 10}):
        first = first_step(0, 10_000, every)
        # What follows the last step is not recorded; what follows the step before the first is.
        recorded = range(first - 1, first + STEPS - 1)
        assert all(step % n for step in recorded for n in every.values())


def test_a_resumed_run_that_is_nearly_done_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"budget=105 steps is too short .* at least 113 steps"):
        first_step(100, 105, {"a": 0})


def test_a_run_without_such_steps_is_refused_before_it_starts(tmp_path: Path) -> None:
    path = str(write(tmp_path / "c.yaml", tiny(tmp_path / "run", checkpoint__every="0 steps")))
    assert command.refused("fit", "-c", path, "--profile") == [
        "budget=6 steps is too short for --profile, which records the 3 steps from step 11 on; "
        "set it to at least 13 steps, or leave --profile out"
    ]
    assert command.refused("fit", "-c", path, "--profile", "--checkpoint.every=2 steps") == [
        "checkpoint.every=2 steps interrupts any 3 steps in a row, which --profile needs; set it "
        "to at least 4 steps or to 0 steps, or leave --profile out"
    ]
    assert not (tmp_path / "run").exists()


# --- real runs ------------------------------------------------------------------------------------


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """The settings, and with them task and Trainer, of the runs of this test."""
    found: list[Settings] = []
    build = training.build

    def spy(settings: Settings, *args: Any, **kwargs: Any) -> training.Run:
        found.append(settings)
        return build(settings, *args, **kwargs)

    monkeypatch.setattr(training, "build", spy)
    return found


def test_a_run_is_recorded_and_otherwise_unchanged(tmp_path: Path, seen: list[Settings]) -> None:
    losses, outputs, profilers = [], [], []
    for flags in (["--profile"], []):
        directory = tmp_path / f"run{len(flags)}"
        config = tiny(
            directory,
            steps=15,
            checkpoint__every="0 steps",
            model__network__init_args__dropout=0.0,
            trainer__log_every_n_steps=5,
        )
        outcome = command.run("fit", "-c", str(write(tmp_path / "c.yaml", config)), *flags)
        assert outcome.code == 0, outcome.err
        outputs.append(outcome.out)
        records = read_metrics(directory / "metrics.jsonl")
        losses.append([r["train/loss"] for r in records if "train/loss" in r])
        task: Any = seen[-1].task
        profilers.append(type(task.trainer.profiler))
        assert not task.network.head._forward_hooks
        assert not task.network.head._forward_pre_hooks
    assert losses[0] == losses[1]
    assert profilers[0] is profilers[1]
    assert outputs[0].count("profile of steps 11 to 13") == 1
    assert f"wrote {tmp_path}/run1/profile/trace.json.gz" in outputs[0]
    assert "profile" not in outputs[1]
    assert not (tmp_path / "run0" / "profile").exists()
    check_trace(tmp_path / "run1" / "profile" / "trace.json.gz")


def check_trace(path: Path) -> None:
    events = read_events(path)
    names = [e.name for e in events]
    assert names.count(UPDATE_MARK) == STEPS
    assert names.count(HEAD_RANGE) == STEPS * ACCUMULATION
    assert names.count(LOADER_RANGE) == STEPS * ACCUMULATION
    found = break_down(events, largest=1000)
    assert found.steps == STEPS
    rows = {row.name: row for row in found.kinds}
    assert tuple(rows) == KINDS
    assert sum(row.share for row in found.kinds) == pytest.approx(1.0)
    assert {row.name for row in found.kinds if row.share > 0} == set(KINDS) - {"communication"}
    calls = {row.name: row.calls for row in found.largest}
    # 2 layers of 4 products, each with two in the backward; the head's 3 are not among them.
    products = 2 * 4 * 3 * ACCUMULATION
    assert calls["aten::mm"] == products + 3 * ACCUMULATION
    wrappers = calls["aten::linear"] + calls.get("aten::matmul", 0.0)
    assert products <= rows["matmul"].calls <= products + wrappers


@pytest.mark.distributed
def test_rank_0_alone_speaks_and_writes(nursery: Nursery, tmp_path: Path) -> None:
    config = tiny(tmp_path / "run", steps=13, checkpoint__every="0 steps", trainer__strategy="ddp")
    log = tmp_path / "log.txt"
    path = str(write(tmp_path / "c.yaml", config))
    assert nursery.run("fit", "-c", path, "--profile", ranks=2, log=log) == [0, 0], log.read_text()
    assert log.read_text().count("profile of steps 11 to 13") == 1
    assert [p.name for p in (tmp_path / "run" / "profile").iterdir()] == ["trace.json.gz"]
    shares = {
        row.name: row.share
        for row in break_down(read_events(tmp_path / "run/profile/trace.json.gz")).kinds
    }
    assert shares["communication"] > 0
