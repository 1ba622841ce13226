"""A run reports at its tenth step what was predicted and what is measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llm_train.cli import load_settings
from llm_train.errors import ConfigError
from llm_train.plan.forecast import planned
from llm_train.testing import configs
from llm_train.testing.command import refused, run


def test_predicted_bytes_are_those_of_the_run(tmp_path: Path) -> None:
    path = configs.write(tmp_path / "tiny.yaml", configs.tiny(tmp_path / "run", steps=11))
    done = run("fit", "-c", str(path), "--plan")
    assert done.code == 0, done.err
    assert "predicted and measured after 10 steps" in done.out
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    (event,) = [r for r in map(json.loads, lines) if r.get("event") == "forecast"]
    assert event["step"] == 10
    assert set(event["measured"]) >= {"parameters", "gradients", "optimizer"}
    for part, size in event["predicted"].items():
        assert event["measured"][part] == pytest.approx(size, rel=0.02), part


def test_a_plan_adds_peak_and_step_to_what_is_compared(tmp_path: Path) -> None:
    path = configs.write(tmp_path / "tiny.yaml", configs.tiny(tmp_path / "run"))
    file = tmp_path / "plan.json"
    options = ["-c", str(path), "--trainer.devices=2", "--trainer.strategy=fsdp"]
    assert run("plan", *options, "--json", str(file)).code == 0
    on_gpus = [*options, "--trainer.accelerator=gpu"]
    found = planned(file, load_settings(on_gpus))
    configured = json.loads(file.read_text())["configured"]
    assert found == {
        "peak": configured["bytes"]["peak"],
        "step": configured["seconds_per_step"],
    }
    with pytest.raises(ConfigError, match="was made for strategy=FSDP, and this run has DDP"):
        planned(file, load_settings([*on_gpus, "--trainer.strategy=ddp"]))
    with pytest.raises(ConfigError, match=r"nowhere\.json is not what plan --json writes"):
        planned(tmp_path / "nowhere.json", load_settings(on_gpus))
    (line,) = refused("fit", "-c", str(path), "--plan", str(file))
    assert line == f"--plan={file} has no effect on a CPU, since plans are made for GPUs"
