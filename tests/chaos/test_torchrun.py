"""SIGKILL of one rank under torchrun: it starts all ranks again, soon, and nothing is lost.

Each start is a cold one, of half a minute on a busy machine; what is timed ends before, when
torchrun has new processes.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_train.testing.ranks import environment
from tests.chaos.conftest import Unbroken
from tests.chaos.jobs import Progress, arguments_of, newest, require_unbroken, step_of
from tests.chaos.trials import trials

KILLS, STEPS, SECONDS = 5, 96, 5.0
STRATEGIES = ["ddp", "fsdp", "zero1", "zero2"]


@pytest.mark.distributed
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", trials("torchrun", 20))
def test_torchrun(
    seed: int,
    unbroken: Unbroken,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    draw = random.Random(f"torchrun-{seed}")
    strategy = STRATEGIES[seed % len(STRATEGIES)]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launcher += ["--nproc-per-node=2", f"--max-restarts={KILLS}", "-m", "llm_train"]
    command = [*launcher, *arguments_of(tmp_path, strategy, STEPS)]
    run_dir, worst = tmp_path / "run", 0.0
    with (
        open(tmp_path / "log.txt", "wb") as log,
        subprocess.Popen(command, env=environment(), stdout=log, stderr=log) as agent,
    ):
        for _ in range(KILLS):
            saved, steps = newest(run_dir), Progress(run_dir)
            wanted = (step_of(saved) if saved else 0) + draw.randint(1, 16)
            wait(lambda s, w: s.last >= w, agent, steps, wanted)
            ranks = workers(agent.pid)
            os.kill(draw.choice(sorted(ranks)), signal.SIGKILL)
            killed = time.monotonic()
            wait(lambda a: len(workers(agent.pid) - a) == 2, agent, ranks)
            worst = max(worst, time.monotonic() - killed)
        assert agent.wait(600) == 0, (tmp_path / "log.txt").read_text()
    require_unbroken(run_dir, unbroken(strategy, STEPS))
    assert worst < SECONDS
    record_property("rank_kills", KILLS)
    record_property("slowest_restart_seconds", round(worst, 2))


def workers(agent: int) -> set[int]:
    """The processes that torchrun has started and not yet collected."""
    found = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
    return {int(pid) for pid in found if b"RANK=" in environ(pid)}


def environ(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:  # it has ended
        return b""


def wait(true: Callable[..., bool], agent: subprocess.Popen[bytes], *given: object) -> None:
    deadline = time.monotonic() + 300
    while not true(*given):
        assert agent.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
