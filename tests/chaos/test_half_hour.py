"""Half an hour with a fault every 30 s: who only starts the run again gets it finished."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_train.report import RecordedRun
from llm_train.testing.configs import losses, tiny, write
from llm_train.testing.fork_server import ForkServer, Job
from tests.chaos.jobs import newest, require_end
from tests.chaos.trials import trials

SECONDS = 60 * float(os.environ.get("MINUTES", "30"))
BETWEEN_SECONDS = 30.0
FAULTS = ["kill", "kill-rank", "terminate", "notice", "damage"]
EFFECTIVE, EXPLAINED = 0.85, 0.995


@pytest.mark.distributed
@pytest.mark.timeout(3 * SECONDS + 600)
@pytest.mark.parametrize("seed", trials("half-hour", 1))
def test_half_hour(
    seed: int,
    fork_server: ForkServer,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    draw, log = random.Random(f"half-hour-{seed}"), tmp_path / "log.txt"

    def fit(name: str, steps: int, every: int) -> Job:
        config = tiny(
            tmp_path / name,
            steps=steps,
            checkpoint__every=f"{every} steps",
            checkpoint__keep_last=3,
            trainer__strategy="ddp",
            trainer__log_every_n_steps=10,
        )
        path = str(write(tmp_path / f"{name}.yaml", config))
        return fork_server.start("fit", "-c", path, "--resume", "auto", ranks=2, log=log)

    require_end(fit("warm", 10, 0), tmp_path)
    began = time.monotonic()
    require_end(fit("measured", 500, 0), tmp_path)
    rate = 500 / (time.monotonic() - began)
    steps, every = int(rate * SECONDS), max(1, int(rate))  # a save a second
    faults, statuses = 0, [1]
    while set(statuses) != {0}:
        job = fit("run", steps, every)
        due = time.monotonic() + BETWEEN_SECONDS
        while job.running and time.monotonic() < due:
            time.sleep(0.01)
        if job.running:
            inject(draw.choice(FAULTS), job, tmp_path / "run", draw)
            faults += 1
        statuses = job.wait()
        assert set(statuses) <= {0, -9, 1, 2, 128 + signal.SIGTERM, 128 + signal.SIGUSR1}
    assert max(losses(tmp_path / "run")) == steps
    assert newest(tmp_path / "run") == tmp_path / "run" / "checkpoints" / f"step-{steps:08d}"
    found = RecordedRun.read(tmp_path / "run").goodput
    record_property("faults", faults)
    record_property("effective", round(found.ratio, 4))
    explained = sum(found.seconds.values()) / found.wall
    record_property("explained", round(explained, 4))
    assert explained >= EXPLAINED
    assert found.ratio >= EFFECTIVE


def inject(fault: str, job: Job, run_dir: Path, draw: random.Random) -> None:
    """One fault; a damaged checkpoint shows when the job that is killed then starts again."""
    if fault in ("terminate", "notice"):
        job.send(signal.SIGTERM if fault == "terminate" else signal.SIGUSR1)
    elif fault == "kill-rank":
        job.send(victims=[draw.randrange(2)])
    else:
        job.send()
        job.wait()
    if fault == "damage":
        saved = sorted((run_dir / "checkpoints").glob("step-*"))
        path = draw.choice([p for p in saved[-1].rglob("*") if p.is_file()])
        content = bytearray(path.read_bytes())
        content[draw.randrange(len(content))] ^= 4
        path.write_bytes(content)
