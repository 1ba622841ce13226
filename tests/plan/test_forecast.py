"""A run says at its tenth step what was predicted and what there is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llm_train.testing import configs
from llm_train.testing.command import run


def test_predicted_bytes_are_those_of_the_run(tmp_path: Path) -> None:
    path = configs.write(tmp_path / "tiny.yaml", configs.tiny(tmp_path / "run", steps=11))
    done = run("fit", "-c", str(path))
    assert done.code == 0, done.err
    assert "predicted and measured after 10 steps" in done.out
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    (event,) = [r for r in map(json.loads, lines) if r.get("event") == "forecast"]
    assert event["step"] == 10
    assert set(event["measured"]) >= {"parameters", "gradients", "optimizer"}
    for part, size in event["predicted"].items():
        assert event["measured"][part] == pytest.approx(size, rel=0.02), part
