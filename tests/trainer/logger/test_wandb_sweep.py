"""A run under the agent of a W&B sweep: both spellings of its arguments, and the id it chose."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_train.runtime import yaml12
from llm_train.testing.command import run
from llm_train.testing.configs import tiny, write
from llm_train.trainer.logger.wandb import WandB

utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils")


@pytest.mark.parametrize("spelling", ["args", "args_no_hyphens"])
def test_the_agents_arguments_are_settings(tmp_path: Path, spelling: str) -> None:
    values = {"seed": 3, "model.optimizer.init_args.learning_rate": 1e-3, "model.compile": "none"}
    chosen = {key: {"value": value} for key, value in values.items()}
    words = utils.create_sweep_command_args({"args": chosen})[spelling]
    file = str(write(tmp_path / "c.yaml", tiny(tmp_path / "run")))
    outcome = run("check", "-c", file, *words, "--print_config")
    assert outcome.code == 0, outcome.err
    found = yaml12.load(outcome.out)
    assert found["seed"] == 3
    assert found["model"]["optimizer"]["init_args"]["learning_rate"] == 1e-3


def test_the_agent_chooses_the_id(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: dict[str, object] = {}

    def init(**arguments: object) -> None:
        asked.update(arguments)
        raise RuntimeError("far enough")

    monkeypatch.setattr("wandb.init", init)
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    monkeypatch.setenv("WANDB_RUN_ID", "chosen")
    WandB(mode="offline", directory=str(tmp_path / "run")).log_metrics({"a": 1.0}, 1)
    assert asked["id"] == "chosen"
