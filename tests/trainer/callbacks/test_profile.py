"""Tests which steps are recorded, and what real runs on a CPU leave behind."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.profiler import ProfilerAction

from llm_train.errors import ConfigError
from llm_train.run import training
from llm_train.settings import Settings
from llm_train.testing import command
from llm_train.testing.attach import attached
from llm_train.testing.configs import losses, tiny, write
from llm_train.testing.fork_server import ForkServer
from llm_train.trainer.callbacks.phases import OTHER, PHASES
from llm_train.trainer.callbacks.profile import FIRST_STEP, STEPS, first_step, idle_share

ACCUMULATION = 4  # that of the tiny run


# --- which steps ----------------------------------------------------------------------------------


def test_the_steps_lie_between_validations_and_checkpoints() -> None:
    assert first_step(0, FIRST_STEP + STEPS - 1, {"a": 0}) == FIRST_STEP
    assert first_step(100, 1000, {"a": 0}) == 100 + FIRST_STEP
    for every in ({"a": 4}, {"a": 4, "b": 5}, {"a": 5, "b": 7}, {"a": 1000, "b": 10}):
        first = first_step(0, 10_000, every)
        # Work after the last step is not recorded; work after the step before the first is.
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
    """Collects the settings, and with them task and Trainer, of the runs of this test."""
    found: list[Settings] = []
    build = training.build

    def spy(settings: Settings, *args: Any, **kwargs: Any) -> training.Run:
        found.append(settings)
        return build(settings, *args, **kwargs)

    monkeypatch.setattr(training, "build", spy)
    return found


def test_a_run_is_recorded_and_otherwise_unchanged(tmp_path: Path, seen: list[Settings]) -> None:
    curves, outputs, profilers = [], [], []
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
        curves.append(losses(directory))
        task: Any = seen[-1].task
        profilers.append(type(task.trainer.profiler))
    assert curves[0] == curves[1]
    assert profilers[0] is profilers[1]
    assert "profile" not in outputs[1]
    assert not (tmp_path / "run0" / "profile").exists()
    file = tmp_path / "run1" / "profile" / "trace.json.gz"
    assert f"wrote {file}" in outputs[0]
    check_tables(outputs[0])
    names = check_trace(file)
    # 2 layers of 4 products and the head's, each with two in the backward.
    products = (2 * 4 + 1) * 3 * ACCUMULATION
    assert names["aten::mm"] == products * STEPS
    # Which ones are largest depends on what else the machine does.
    operators = table(outputs[0], "largest operators")
    assert operators.get("aten::mm", [str(products)])[-1] == str(products)


def check_tables(out: str) -> None:
    phases = table(out, "profile of steps 11 to 13")
    assert set(phases) == {*PHASES.values(), OTHER, "one step", "CPU without an operator"}
    milliseconds = {name: float(values[0]) for name, values in phases.items() if "ms" in values}
    assert min(milliseconds.values()) > 0
    whole = milliseconds.pop("one step")
    assert sum(milliseconds.values()) == pytest.approx(whole, abs=0.01)
    assert 0 < float(phases["CPU without an operator"][0].rstrip("%")) < 100


def table(out: str, title: str) -> dict[str, list[str]]:
    """Name -> values of the section whose title begins so."""
    [section] = [part for part in out.split("\n\n") if part.startswith(title)]
    rows = [line.strip().split("  ", 1) for line in section.splitlines()[1:]]
    return {name: values.split() for name, values in rows}


def check_trace(path: Path) -> Counter[str]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        names = Counter(event["name"] for event in json.load(file)["traceEvents"])
    assert sum(n for name, n in names.items() if name.startswith("ProfilerStep#")) == STEPS
    expected = {"optimizer": STEPS}
    assert {name: names[name] for name in PHASES.values()} == {
        name: expected.get(name, STEPS * ACCUMULATION) for name in PHASES.values()
    }
    return names


def test_an_instant_counts_once() -> None:
    spans = [(10, 20), (0, 5), (15, 30), (12, 13), (30, 31), (90, 120)]
    assert idle_share(spans, 0, 100) == pytest.approx(1 - (5 + 21 + 10) / 100)
    assert idle_share(spans, 18, 28) == 0
    assert idle_share([], 0, 1) == 1


class Fail(pl.Callback):
    """Raises at the first micro-batch of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step - 1:
            raise RuntimeError("on purpose")


def test_only_a_profiler_that_records_is_stopped(
    tmp_path: Path, seen: list[Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that warms up is started first: on CUDA, stopping it would end the process."""
    stopped: list[ProfilerAction] = []
    stop = torch.profiler.profile.stop
    monkeypatch.setattr(
        torch.profiler.profile,
        "stop",
        lambda self: (stopped.append(self.current_action), stop(self)),
    )
    config = tiny(tmp_path / "run", steps=15, checkpoint__every="0 steps")
    arguments = ("fit", "-c", str(write(tmp_path / "c.yaml", config)), "--profile")
    for step in (FIRST_STEP - 1, FIRST_STEP):
        with attached(Fail(step)):
            failed = command.run(*arguments)
        assert failed.code == 1
        assert "on purpose" in failed.err
        assert stopped.pop() is ProfilerAction.RECORD
        assert not stopped
        task: Any = seen[-1].task
        assert "Phases" not in type(task.trainer.profiler).__name__
    assert "profile of steps 11 to 13" in command.run(*arguments).out  # nothing is left behind


@pytest.mark.distributed
def test_rank_0_alone_speaks_and_writes(fork_server: ForkServer, tmp_path: Path) -> None:
    config = tiny(tmp_path / "run", steps=13, checkpoint__every="0 steps", trainer__strategy="ddp")
    log = tmp_path / "log.txt"
    path = str(write(tmp_path / "c.yaml", config))
    statuses = fork_server.run("fit", "-c", path, "--profile", ranks=2, log=log)
    assert statuses == [0, 0], log.read_text()
    assert log.read_text().count("profile of steps 11 to 13") == 1
    [trace] = (tmp_path / "run" / "profile").iterdir()
    assert trace.name == "trace.json.gz"
    assert b"c10d::allreduce_" in gzip.decompress(trace.read_bytes())
