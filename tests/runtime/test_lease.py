"""A folder has one holder at a time, among real processes that start, are killed and go silent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_train.errors import LLMTrainError
from llm_train.runtime.lease import Lease
from llm_train.testing.ranks import environment

# Three processes want the folder at the same instant; argv[2] says who had it before.
RACE = """
import os, signal, sys, time
from pathlib import Path
from llm_train.errors import LLMTrainError
from llm_train.runtime.lease import Lease

def hold(folder, start, others, told):
    signal.alarm(10)  # the end of whoever holds the folder alongside another
    while time.monotonic() < start:
        pass
    try:
        with Lease(folder=folder).held():
            if not others and sys.argv[2] == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            for _ in range(others):
                os.read(told[0], 1)
        os._exit(0)
    except LLMTrainError:
        os.write(told[1], b"x")
        os._exit(2)

def statuses(count, folder):
    start, told = time.monotonic() + 0.02, os.pipe()
    for _ in range(count):
        os.fork() or hold(folder, start, count - 1, told)
    return sorted(os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(count))

for trial in range(10):
    folder = Path(sys.argv[1]) / str(trial)
    if sys.argv[2] != "nobody":
        statuses(1, folder)
    print(statuses(3, folder))
"""


@pytest.mark.parametrize("before", ["nobody", "ended", "killed"])
def test_of_three_that_start_at_once_one_goes_on(before: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", RACE, str(tmp_path), before]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=True, env=environment()
    )
    trials = [line for line in done.stdout.splitlines() if line.startswith("[")]
    assert trials == ["[0, 2, 2]"] * 10, done.stdout
    assert done.stdout.count("taking over") == (10 if before == "killed" else 0)


def short(folder: Path) -> Lease:
    return Lease(folder=folder, beat_seconds=0.05, stale_seconds=0.5)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """The lease of a run on another host."""
    with short(tmp_path).held():
        path = tmp_path / ".lease-00000001"
        about = json.loads(path.read_text())
    path = tmp_path / ".lease-00000001.ended"
    path.write_text(json.dumps({**about, "host": "node-7", "kernel": "another", "pid": 4711}))
    return path.rename(tmp_path / ".lease-00000001")


def test_a_holder_elsewhere_is_refused_while_it_shows_life(elsewhere: Path) -> None:
    stop = threading.Event()
    heart = threading.Thread(target=short(elsewhere.parent)._beat, args=(elsewhere, stop))
    heart.start()
    with (
        pytest.raises(LLMTrainError, match=r"node-7, pid 4711, since .*default_root_dir"),
        short(elsewhere.parent).held(),
    ):
        pass
    stop.set()
    heart.join()


def test_a_silent_holder_elsewhere_is_taken_over(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with short(elsewhere.parent).held():
        assert not elsewhere.exists()
    assert "taking over" in (said := capsys.readouterr().out)
    assert "node-7" in said


def test_a_lease_of_which_nothing_was_written_is_waited_for(elsewhere: Path) -> None:
    elsewhere.write_text("")
    os.utime(elsewhere, (0, 0))
    with short(elsewhere.parent).held():
        assert not elsewhere.exists()


@pytest.mark.parametrize(
    "lose", [Path.unlink, lambda path: path.rename(path.with_name(".lease-00000002"))]
)
def test_whoever_lost_it_is_told(lose: Callable[[Path], None], tmp_path: Path) -> None:
    with (lease := Lease(folder=tmp_path)).held():
        lease.require()
        lose(tmp_path / ".lease-00000001")
        with pytest.raises(LLMTrainError, match=r"no longer holds .*--resume auto"):
            lease.require()
