"""Where wall time goes: what a run wrote about itself against a clock outside of it."""

from __future__ import annotations

import itertools
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from llm_train.report import RecordedRun
from llm_train.report.goodput import Goodput
from llm_train.runtime.ledger import DEVICE, Ledger
from llm_train.testing.configs import tiny, write
from llm_train.testing.fork_server import ForkServer
from llm_train.trainer.logger.records import read_lines

# To fork processes and notice their end, and after the last line of one; on a busy machine.
OUTSIDE_SECONDS = 0.5


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("queued", "allowed"), [(0.0, OUTSIDE_SECONDS), pytest.param(30.0, 0.0, marks=pytest.mark.slow)]
)
def test_two_kills_are_explained(
    queued: float, allowed: float, fork_server: ForkServer, tmp_path: Path
) -> None:
    """Two ranks, SIGKILL twice: the names add up to the time outside, replayed steps are exact."""
    folder, log = tmp_path / "run", tmp_path / "log.txt"
    config = tiny(
        folder,
        steps=60,
        checkpoint__every="10 steps",
        validate_every="15 steps",
        trainer__strategy="ddp",
    )
    arguments = ["fit", "-c", str(write(tmp_path / "c.yaml", config))]
    metrics = folder / "metrics.jsonl"
    fork_server.command("--version", folder=tmp_path)  # returns when the server is ready
    began = time.time()
    for step in (17, 38):
        ends = fork_server.run(*arguments, ranks=2, log=log, metrics=metrics, step=step)
        assert ends == [-9, -9], log.read_text()
        arguments += ["--resume", "auto"]
        time.sleep(queued)
    assert fork_server.run(*arguments, ranks=2, log=log) == [0, 0]
    outside = time.time() - began

    found = RecordedRun.read(folder).goodput
    trained = [line["step"] for line in read_lines(metrics) if "train/loss" in line]
    assert found.replayed == len(trained) - len(set(trained)) > 0
    assert found.restarts == 2
    assert found.seconds["replayed_steps"] > 0
    explained = sum(found.seconds.values())
    assert explained == pytest.approx(found.wall, rel=1e-3)
    assert 0.995 * (outside - allowed) <= explained <= outside


def line(event: str, at: float, step: int, steps: int, /, **seconds: float) -> dict[str, Any]:
    when = datetime.fromtimestamp(at, UTC).isoformat()
    return {"event": event, "time": when, "step": step, "steps": steps, "seconds": seconds}


def test_two_processes_that_go_back() -> None:
    """Back to step 4 at a restart, to step 6 without one; a kind that nobody has heard of."""
    first = [
        line("begin", 10, 0, 0, build=10.0),
        line("time", 20, 10, 10, steps=9.0, stretching=1.0),
    ]
    second = [
        line("begin", 40, 4, 0, build=12.0),
        line("time", 52, 10, 6, steps=12.0),
        line("left", 56, 12, 2, steps=4.0),
        line("time", 70, 9, 3, steps=3.0, rollback=11.0),
        line("end", 90, 20, 11, steps=22.0) | {"complete": True},
    ]
    third = [line("begin", 1000, 20, 0, build=5.0), line("end", 1002, 21, 1, steps=2.0)]
    odd: list[dict[str, Any]] = [
        line("time", 1001, 21, 1, steps=-1.0),
        line("time", 1001, 21, 1, steps=float("nan")),
        {**line("time", 1001, 21, 1), "seconds": [1]},
        {**line("time", 1001, 21, 1), "steps": "many"},
    ]
    metrics: list[dict[str, Any]] = [
        {"step": 11, "time": line("", 21, 0, 0)["time"]},  # the process was killed before its line
        {"step": 12, "time": line("", 54, 0, 0)["time"]},
        {"step": 6, "time": line("", 55, 0, 0)["time"], "event": "rollback"},
    ]
    found = Goodput.of([*first, *second, *third, *odd], metrics)
    # 5 to 11 in the second process (12 is new), 7 to 12 after its rollback
    assert (found.replayed, found.restarts) == (7 + 6, 2)
    assert found.seconds == pytest.approx(
        {
            "build": 27.0,
            "stretching": 1.0,
            "rollback": 11.0,
            "restart": 8.0,
            "replayed_steps": 12.0 + 2.0 + 3.0 + 3 * 2.0,
            "steps": 9.0 + 2.0 + 8 * 2.0 + 2.0,
        }
    )
    assert found.wall == 97.0  # without what lies between a complete run and the next
    assert found.ratio == 29 / 97


def test_a_ledger_names_every_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """One second passes at each look at the clock; a slow loader delays only an idle device."""
    ticks = itertools.count()
    monkeypatch.setattr("llm_train.runtime.ledger.time.monotonic", lambda: float(next(ticks)))
    written: list[dict[str, Any]] = []
    ledger = Ledger(lambda event, step, **rest: written.append({"event": event, **rest}))
    ledger.imported(10.0)
    ledger.begin(0)
    with ledger.during("data_wait"):
        next(ticks)
    with ledger.during(DEVICE):
        next(ticks)
        next(ticks)
    with ledger.during("data_wait"):
        next(ticks)
        next(ticks)
    ledger.step_done(1)
    ledger.end(complete=True)
    assert sum(sum(row["seconds"].values()) for row in written) == next(ticks) - 1 + 10
    assert [row["steps"] for row in written] == [0, 1, 0]
    assert written[0]["seconds"] == {"start_up/imports": 10.0, "start_up/build": 1.0, "steps": 1.0}
    assert written[1]["seconds"]["data_wait"] == 5.0 - 3.0
