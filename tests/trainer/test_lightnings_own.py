"""What Lightning brings along does what its user expects: reports are shown, records are right."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from llm_train.testing.command import run
from llm_train.testing.configs import part, tiny, write
from llm_train.trainer.logger.records import read_lines


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What reaches Lightning's log."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("lightning.pytorch")
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


def test_reports_are_shown_and_rates_logged_once_a_step(
    tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two micro-batches a step; the first update has the first rate of the warm-up."""
    import torch._inductor.config as compiler

    monkeypatch.setattr(compiler, "deterministic", False)
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda *_, **__: None)
    config = tiny(
        tmp_path / "run",
        batch__tokens=64,
        validate_every="3 steps",
        trainer__profiler="simple",
        trainer__deterministic="warn",
        trainer__callbacks=[
            part("LearningRateMonitor", logging_interval="step"),
            part("ModelSummary"),
            part("EarlyStopping", monitor="val/loss", verbose=True),
        ],
    )
    outcome = run("fit", "-c", str(write(tmp_path / "c.yaml", config)))
    assert outcome.code == 0, outcome.err
    records = [line for line in read_lines(tmp_path / "run/metrics.jsonl") if "step" in line]
    monitored = {r["step"]: r["lr-AdamW/pg1"] for r in records if "lr-AdamW/pg1" in r}
    ours = {r["step"]: r["optimizer/lr"] for r in records if "optimizer/lr" in r}
    assert sum("lr-AdamW/pg1" in record for record in records) == len(monitored) == 6
    assert monitored == {step: ours[max(step, 1)] for step in range(6)}
    everything = "\n".join(said)
    for report in ("Profiler Report", "Total params", "Metric val/loss improved"):
        assert report in everything
    assert "used:" not in everything, "advice for everybody stays hidden"
    assert compiler.deterministic
