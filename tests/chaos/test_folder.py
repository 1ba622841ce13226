"""A run folder that is moved behind links, wanted by two, or left by a dead host: nothing is lost.

A trial is one of four scenes. What two runs write into one folder, and what a start refuses or
takes over, is compared with the unbroken run like everything else here.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_train.runtime.lease import Lease
from llm_train.testing.fork_server import Job
from tests.chaos.conftest import Start, Unbroken
from tests.chaos.jobs import kill, newest, require_end, require_unbroken, step_of
from tests.chaos.trials import trials

STEPS = 48


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("scene", "seed"),
    [
        # The default suite has both without a kill at a random time: tests/resume/test_folder.py.
        *trials("links", 30, "links"),
        *trials("two-runs", 30, "two"),
        *trials("foreign-dead", 8, "dead"),
        *trials("foreign-alive", 8, "alive"),
    ],
)
def test_folder(scene: str, seed: int, start: Start, unbroken: Unbroken, tmp_path: Path) -> None:
    draw = random.Random(f"{scene}-{seed}")
    strategy = draw.choice(["single", "single", "ddp"])
    scenes = {"links": behind_links, "two": two_at_once, "dead": taken_over, "alive": refused}
    scenes[scene](start(tmp_path, strategy, STEPS), tmp_path, draw)
    require_unbroken(tmp_path / "run", unbroken(strategy, STEPS))
    assert not (tmp_path / "run" / "earlier").exists()


def killed(fit: Callable[[], Job], folder: Path, draw: random.Random) -> None:
    """Kills a run until it has a checkpoint, and perhaps once more, far from its end."""
    while (saved := newest(folder / "run")) is None or (
        step_of(saved) < 16 and draw.random() < 0.5
    ):
        assert kill(fit, folder / "run", "step", draw).statuses[0] == -9


def behind_links(fit: Callable[[], Job], folder: Path, draw: random.Random) -> None:
    """Everything that may be a link becomes one, or some of it, before the run goes on."""
    killed(fit, folder, draw)
    saved = newest(folder / "run")
    assert saved is not None
    parts = {"step": saved, "checkpoints": saved.parent, "run": folder / "run"}
    for name in sorted(draw.sample(list(parts), draw.randint(1, 3)), key=list(parts).index):
        parts[name].rename(folder / f"disk-of-{name}")
        parts[name].symlink_to(folder / f"disk-of-{name}")
    require_end(fit(), folder)


def two_at_once(fit: Callable[[], Job], folder: Path, draw: random.Random) -> None:
    """One of them trains, the other is refused in one line."""
    jobs = [fit()]
    time.sleep(draw.uniform(0, 0.5))
    jobs.append(fit())
    codes = sorted(job.wait()[0] for job in jobs)
    said = (folder / "log.txt").read_text()
    assert codes == [0, 2], said
    assert said.count(" is in use by another run: ") == 1
    assert "Traceback" not in said


def elsewhere(folder: Path) -> Path:
    """Makes the lease that a killed run has left one of another host."""
    (lease,) = (folder / "run").glob(".lease-*")
    about = json.loads(lease.read_text())
    lease.write_text(json.dumps({**about, "host": "node-7", "kernel": "another"}))
    return lease


def taken_over(fit: Callable[[], Job], folder: Path, draw: random.Random) -> None:
    """The host died hours ago: the next start need not be told."""
    killed(fit, folder, draw)
    ago = time.time() - draw.uniform(120, 1e6)
    os.utime(elsewhere(folder), (ago, ago))
    require_end(fit(), folder)
    assert "taking over" in (said := (folder / "log.txt").read_text())
    assert "node-7" in said


def refused(fit: Callable[[], Job], folder: Path, draw: random.Random) -> None:
    """The host is alive: a second run is refused, and has changed nothing."""
    killed(fit, folder, draw)
    lease, stop = elsewhere(folder), threading.Event()
    beat = Lease(folder=folder, beat_seconds=1)._beat
    threading.Thread(target=beat, args=(lease, stop), daemon=True).start()
    before = {path: path.stat().st_mtime_ns for path in (folder / "run" / "checkpoints").rglob("*")}
    lines = (folder / "run" / "metrics.jsonl").read_bytes()
    code = fit().wait()[0]
    stop.set()
    assert code == 2
    assert "node-7" in (said := (folder / "log.txt").read_text())
    assert "--trainer.default_root_dir=FOLDER" in said
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (folder / "run" / "metrics.jsonl").read_bytes() == lines
    lease.unlink()  # and once the other host is gone, the run goes on
    require_end(fit(), folder)
