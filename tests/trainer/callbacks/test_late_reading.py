"""A sample that is read one interval late equals one that is read at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llm_train.testing.configs import tiny, write
from llm_train.testing.fork_server import ForkServer
from llm_train.trainer.logger.records import read_lines, read_metrics

LATE = Path(__file__).with_name("read_late.py")
MEASURED = ("time", "throughput/tokens_per_s", "throughput/tflops_per_s", "memory/peak_gib")


def records(run: Path) -> list[dict[str, Any]]:
    found = [r for r in read_lines(run / "metrics.jsonl") if "event" not in r]
    return [{k: v for k, v in r.items() if k not in MEASURED} for r in found]


def test_late_metrics_are_the_same_metrics(fork_server: ForkServer, tmp_path: Path) -> None:
    """With validations and checkpoints between log points, and a last step that is none."""
    found = {}
    for name, script in (("at_once", None), ("late", LATE)):
        config = tiny(
            tmp_path / name,
            steps=11,
            trainer__log_every_n_steps=3,
            validate_every="4 steps",
            checkpoint__every="5 steps",
        )
        path = write(tmp_path / f"{name}.yaml", config)
        log = tmp_path / f"{name}.txt"
        extra = {} if script is None else {"script": script}
        assert fork_server.run("fit", "-c", str(path), ranks=0, log=log, **extra) == [0]
        found[name] = records(tmp_path / name)
    steps = [r["step"] for r in found["late"] if "train/loss" in r]
    assert steps == [3, 6, 9, 11]
    order = {
        name: sorted(rows, key=lambda r: (r["step"], "val/loss" in r))
        for name, rows in found.items()
    }
    assert order["late"] == order["at_once"]


def test_a_reading_waits_for_the_next_log_point(fork_server: ForkServer, tmp_path: Path) -> None:
    """Nothing but the last step asks for it earlier here."""
    config = tiny(
        tmp_path / "run", steps=11, trainer__log_every_n_steps=3, checkpoint__every="0 steps"
    )
    path, log = write(tmp_path / "c.yaml", config), tmp_path / "log.txt"
    assert fork_server.run("fit", "-c", str(path), ranks=0, log=log, script=LATE) == [0]
    published = [line for line in log.read_text().splitlines() if line.startswith("published")]
    assert published == [
        "published 3 at 6",
        "published 6 at 9",
        "published 9 at 11",
        "published 11 at 11",
    ]


def test_the_first_step_is_recorded(fork_server: ForkServer, tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", tiny(tmp_path / "run", steps=4))
    log = tmp_path / "log.txt"
    assert fork_server.run("fit", "-c", str(path), ranks=0, log=log) == [0]
    (event,) = [
        r for r in read_lines(tmp_path / "run" / "metrics.jsonl") if r.get("event") == "first_step"
    ]
    assert event["step"] == 1
    assert 0 < event["seconds"] < 600
    assert "compile_seconds" not in event  # nothing was compiled
    assert "first step " in log.read_text()
    metrics = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert all(r["throughput/tflops_per_s"] > 0 for r in metrics if "train/loss" in r)
