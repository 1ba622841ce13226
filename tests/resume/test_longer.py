"""A run that is made longer says what becomes of its learning rate, and its remedies work."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_train.testing.command import run
from llm_train.testing.configs import part, tiny, write
from llm_train.trainer.logger.records import read_metrics

PEAK, FLOOR = 0.01, 0.1


def test_a_finished_cosine_does_not_jump_in_silence(tmp_path: Path) -> None:
    cosine = part("WarmupCosine", warmup="1 steps", floor=FLOOR)
    adamw = part("AdamW", learning_rate=PEAK)
    settings = {"model__schedule": cosine, "model__optimizer": adamw}
    file = str(write(tmp_path / "c.yaml", tiny(tmp_path / "run", **settings)))
    assert run("fit", "-c", file).code == 0
    finished = str(tmp_path / "run" / "checkpoints" / "step-00000006")

    def longer(*options: str) -> tuple[str, list[float]]:
        where = f"--trainer.default_root_dir={tmp_path / 'longer'}"
        outcome = run("fit", "-c", file, "--resume", finished, "--budget=12 steps", where, *options)
        assert outcome.code == 0, outcome.err
        records = read_metrics(tmp_path / "longer" / "metrics.jsonl")
        return outcome.out, [r["optimizer/lr"] for r in records if "optimizer/lr" in r]

    text, rates = longer()
    _, _, changed = text.partition("changed since the checkpoint")
    row = next(line for line in changed.splitlines() if "learning rate of step 6" in line)
    assert "0.001 -> 0.00614042" in row
    assert "note: the learning rate goes up" in text
    assert "Constant with a peak of 0.001" in text
    assert "to decay again, CosineRestarts" in text
    assert rates[0] > 4 * FLOOR * PEAK

    text, rates = longer("--model.schedule=Constant", "--model.optimizer.learning_rate=0.001")
    assert "goes up" not in text
    assert rates == pytest.approx([0.001] * 6)
    text, _ = longer("--model.schedule=CosineRestarts", "--model.schedule.period=5 steps")
    assert "note: the learning rate goes up" in text
    assert "to decay again" not in text
    text, rates = longer("--model.schedule=CosineRestarts", "--model.schedule.period=6 steps")
    assert "learning rate of step" not in text
    assert "keeps warmup, floor" in text
    assert rates[0] == pytest.approx(PEAK)
    assert rates[-1] == pytest.approx(PEAK * FLOOR)
