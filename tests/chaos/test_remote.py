"""SIGKILL while checkpoints are uploaded, and local disks that are lost between two starts.

The next start goes on from the newest complete checkpoint of either home, and what is complete in
the remote one is bit by bit what an unbroken run saves.
"""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from llm_train.checkpoint import manifest
from llm_train.testing.fork_server import Job
from llm_train.trainer.logger.records import read_lines
from tests.chaos.conftest import Start, Unbroken
from tests.chaos.jobs import (
    EVERY,
    Progress,
    newest,
    require_end,
    require_same,
    require_unbroken,
)
from tests.chaos.trials import trials

SLOW = Path(__file__).with_name("slow_upload.py")
STEPS, KILLS = 64, 6


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("strategy", "seed"),
    [trial for s in ("single", "fsdp") for trial in trials(f"remote-{s}", 10, s)],
)
def test_remote(
    strategy: str,
    seed: int,
    start: Start,
    unbroken: Unbroken,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    draw = random.Random(f"remote-{strategy}-{seed}")
    run_dir, bucket = tmp_path / "run", tmp_path / "bucket"
    bucket.mkdir()
    options = {
        "checkpoint__remote": f"file://{bucket}",
        "checkpoint__keep_last": 3,
        "checkpoint__asynchronous": seed % 2 == 1,
    }
    fit = partial(start(tmp_path, strategy, STEPS, **options), script=SLOW)
    expected = unbroken(strategy, STEPS)
    done: Counter[str] = Counter()
    for _ in range(KILLS):
        reached = newest_of_both(run_dir, bucket)
        done.update(kill_uploading(fit, run_dir, bucket, reached, draw))
        assert begun_at(run_dir) == reached, (tmp_path / "log.txt").read_text()
        require_same(newest(run_dir), expected)
        for path in complete(bucket):
            assert manifest.problems(path) == []
            require_same(path, expected)
        if complete(bucket) and draw.random() < 0.4:
            shutil.rmtree(run_dir / "checkpoints")
            done["lost"] += 1
    require_end(fit(), tmp_path)
    require_unbroken(run_dir, expected)
    for name, number in done.items():
        record_property(name, number)


def kill_uploading(
    fit: Callable[[], Job], run_dir: Path, bucket: Path, reached: int, draw: random.Random
) -> dict[str, int]:
    """Starts a run and kills all of it, in most cases while it uploads; counts what was done."""
    steps, began = Progress(run_dir), time.time()
    wanted, inside = reached + draw.randint(1, EVERY), draw.random() < 0.7
    job = fit()
    job.until(lambda: steps.last >= wanted and (not inside or uploading(bucket, began)))
    time.sleep(draw.uniform(0, 0.5))
    job.send()
    return {"kills": -9 in job.wait(), "uploads": uploading(bucket, began)}


def complete(bucket: Path) -> list[Path]:
    return sorted(path.parent for path in bucket.glob("*/manifest.json"))


def uploading(bucket: Path, since: float) -> bool:
    """Whether an upload that was under way after ``since`` is not complete."""
    last = max(bucket.iterdir(), key=lambda path: path.name.rpartition("-")[2], default=None)
    return last is not None and last not in complete(bucket) and last.stat().st_mtime > since


def newest_of_both(run_dir: Path, bucket: Path) -> int:
    """The step of the checkpoint that was committed last, wherever it is; 0 if there is none."""
    here = newest(run_dir)
    found = map(manifest.read, [*complete(bucket), *([here] if here else [])])
    return max(((m.sequence, int(m.metadata["step"])) for m in found), default=(0, 0))[1]


def begun_at(run_dir: Path) -> int:
    """The step at which the last start began."""
    events = ("start", "resume")
    lines = read_lines(run_dir / "metrics.jsonl")
    return [line["step"] for line in lines if line.get("event") in events][-1]
