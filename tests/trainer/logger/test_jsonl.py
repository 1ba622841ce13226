"""Tests the metrics file: its lines, what a kill leaves, and the curve that a reader gets."""

import json
import math
from datetime import datetime

import pytest
import torch

from llm_train.trainer.logger import JSONLMetrics, merge, read_lines, read_metrics


def test_written_and_read_back(tmp_path):
    logger = JSONLMetrics()
    logger.attach(tmp_path / "run")
    logger.log_metrics({"train/loss": 2.5, "progress/tokens": 1000}, step=10)
    logger.log_metrics({"val/loss": torch.tensor(2.25)}, step=10)
    logger.log_metrics({"train/loss": 2.0}, step=20)
    first, second = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert first["train/loss"] == 2.5
    assert first["val/loss"] == 2.25
    assert first["progress/tokens"] == 1000
    assert isinstance(first["progress/tokens"], int)
    assert (first["step"], second["step"]) == (10, 20)
    assert datetime.fromisoformat(first["time"]).utcoffset().total_seconds() == 0
    assert logger.save_dir == str(tmp_path / "run")


def test_a_configured_directory_wins(tmp_path):
    logger = JSONLMetrics(directory=str(tmp_path / "mine"))
    logger.attach(tmp_path / "run")
    logger.log_metrics({"a": 1.0}, step=1)
    assert (tmp_path / "mine" / "metrics.jsonl").exists()
    assert not (tmp_path / "run").exists()


def test_non_finite_numbers_in_strict_json(tmp_path):
    logger = JSONLMetrics(str(tmp_path))
    logger.log_metrics({"a": math.nan, "b": math.inf, "c": -math.inf}, step=1)
    logger.log_event("stopped", 1, loss=math.nan)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    raw = [json.loads(line, parse_constant=refuse) for line in logger.path.read_text().splitlines()]
    assert (raw[0]["a"], raw[0]["b"], raw[0]["c"]) == ("nan", "inf", "-inf")
    [record] = read_metrics(logger.path)
    assert math.isnan(record["a"])
    assert (record["b"], record["c"]) == (math.inf, -math.inf)


def test_a_resumed_run_reads_as_one_curve(tmp_path):
    logger = JSONLMetrics(str(tmp_path))
    for step in (1, 2, 3, 4):
        logger.log_metrics({"train/loss": float(step)}, step=step)
    resumed = JSONLMetrics(str(tmp_path))
    resumed.log_event("resume", 2, path="checkpoints/step-00000002")
    resumed.log_metrics({"train/loss": 30.0}, step=3)
    curve = {record["step"]: record["train/loss"] for record in read_metrics(logger.path)}
    assert curve == {1: 1.0, 2: 2.0, 3: 30.0}
    event = read_lines(logger.path)[4]
    assert event["event"] == "resume"
    assert event["path"] == "checkpoints/step-00000002"
    resumed.log_event("start", 0)
    assert read_metrics(logger.path) == []


def test_events_that_supersede_nothing():
    lines = [{"step": 1, "a": 1}, {"step": 3, "a": 3}, {"event": "signal", "step": 2}]
    assert merge(lines) == [{"step": 1, "a": 1}, {"step": 3, "a": 3}]


def test_a_torn_last_line_is_dropped_and_later_removed(tmp_path):
    JSONLMetrics(str(tmp_path)).log_metrics({"a": 1.0}, step=1)
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole + whole[:cut])
        assert len(read_lines(path)) == 1
        JSONLMetrics(str(tmp_path)).log_metrics({"a": 2.0}, step=2)
        assert [record["a"] for record in read_metrics(path)] == [1.0, 2.0]


ODD = [
    *("\0\0", "17", "[" * 100_000, '{"a": 1}', '{"step": "x"}', '{"step": -1}', '{"step": true}'),
    *('{"step": 1, "a": null}', '{"step": 1, "a": "b"}', '{"step": 1, "time": "yesterday"}'),
    *('{"event": 3, "step": 1}', '{"step": 1, "a": 1' + "0" * 400 + "}"),
]


def test_lines_that_no_logger_wrote_are_skipped_with_one_warning(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join(['{"step": 1}', *ODD, '{"step": 2}', ""]))
    assert [record["step"] for record in read_metrics(path)] == [1, 2]
    [warning] = caplog.messages
    assert f"{path}: line 2 and {len(ODD) - 1} more" in warning
    assert "remove" in warning


def test_only_rank_zero_writes(tmp_path, monkeypatch):
    from lightning.pytorch.utilities import rank_zero_only

    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = JSONLMetrics(str(tmp_path))
    logger.log_metrics({"a": 1.0}, step=1)
    logger.log_event("resume", 1)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_writer_leaves_whole_lines(fork_server, tmp_path):
    script = tmp_path / "writer.py"
    script.write_text(
        "import sys; from llm_train.trainer.logger import JSONLMetrics\n"
        "logger = JSONLMetrics(sys.argv[1])\n"
        "for step in range(10**9): logger.log_metrics({'a' * 200: float(step)}, step=step)\n"
    )
    path, log = tmp_path / "metrics.jsonl", tmp_path / "log.txt"
    kill = {"metrics": path, "step": 400, "delay_seconds": 0.0}
    assert fork_server.run(str(tmp_path), ranks=0, log=log, script=script, **kill) == [-9]
    steps = [record["step"] for record in read_metrics(path)]
    assert steps == list(range(len(steps)))
    assert len(steps) > 100


def test_writing_before_attach_is_a_programming_error():
    with pytest.raises(AssertionError, match="attach"):
        JSONLMetrics().log_metrics({"a": 1.0}, step=1)
