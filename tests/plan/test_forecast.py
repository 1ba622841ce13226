"""A run with a plan says at its tenth step what was predicted and what there is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llm_train.cli import load_settings
from llm_train.errors import ConfigError
from llm_train.plan.cost_model import CostModel
from llm_train.plan.draft import configured, on_devices
from llm_train.runtime.devices import device_called
from llm_train.testing import configs
from llm_train.testing.command import refused, run
from llm_train.trainer.callbacks.forecast import planned


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a configuration and what ``plan`` writes of it, without the search for a faster one."""
    folder = tmp_path_factory.mktemp("planned")
    path = configs.write(folder / "tiny.yaml", configs.tiny(folder / "run", steps=11))
    settings = load_settings(["-c", str(path), "--trainer.devices=1"])
    model = CostModel(on_devices(settings, devices=1, nodes=1), device_called("h100"))
    (folder / "plan.json").write_text(json.dumps(configured(model)[2]))
    return folder


def test_predicted_bytes_are_those_of_the_run(folder: Path) -> None:
    options = ["-c", str(folder / "tiny.yaml"), "--trainer.devices=1"]
    done = run("fit", *options, "--plan", str(folder / "plan.json"))
    assert done.code == 0, done.err
    assert "predicted and measured after 10 steps" in done.out
    assert "predicted, unknown here" in done.out  # the peak, since this is a CPU
    lines = (folder / "run/metrics.jsonl").read_text().splitlines()
    (event,) = [r for r in map(json.loads, lines) if r.get("event") == "forecast"]
    assert event["step"] == 10
    assert set(event["measured"]) >= {"parameters", "gradients", "optimizer"}
    for part, size in event["predicted"].items():
        assert event["measured"][part] == pytest.approx(size, rel=0.02), part


def test_the_plan_of_another_run_is_refused(folder: Path) -> None:
    file = folder / "plan.json"
    configured = json.loads(file.read_text())["configured"]
    found = planned(file, {"strategy": "SingleDevice", "micro_batch": 2})
    assert (found["peak"], found["step"]) == (
        configured["bytes"]["peak"],
        configured["seconds_per_step"],
    )
    with pytest.raises(
        ConfigError, match="was made for strategy=SingleDevice, and this run has DDP"
    ):
        planned(file, {"strategy": "DDP"})
    nowhere = folder / "nowhere.json"
    (line,) = refused("fit", "-c", str(folder / "tiny.yaml"), "--plan", str(nowhere))
    assert line.startswith(f"--plan={nowhere} is not what plan --json writes")
