"""Each rule about ZeRO prints its line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llm_train.testing.command import refused, run
from llm_train.testing.configs import tiny, write

KEY = "trainer.strategy.init_args"
GPU: dict[str, Any] = {"trainer__accelerator": "gpu", "trainer__devices": 2}


def zero(**arguments: Any) -> dict[str, Any]:
    strategy = {"class_path": "ZeRO", "init_args": {"stage": 3, **arguments}}
    return {**GPU, "trainer__strategy": strategy}


# What is changed, how the one line begins, and the way out.
RULES: dict[str, tuple[dict[str, Any], str, str]] = {
    "parameters below stage 3": (
        zero(stage=2, offload_parameters="cpu"),
        f"{KEY}.offload_parameters=cpu needs stage 3",
        f"set {KEY}.stage=3",
    ),
    "state on NVMe below stage 3": (
        zero(stage=1, offload_optimizer="nvme", nvme_path="/nvme"),
        f"{KEY}.offload_optimizer=nvme needs stage 3",
        f"set {KEY}.stage=3",
    ),
    "no directory": (
        zero(offload_parameters="nvme"),
        f"{KEY}.offload_parameters=nvme needs a directory",
        f"set {KEY}.nvme_path",
    ),
    "a directory for nothing": (
        zero(offload_optimizer="cpu", nvme_path="/nvme"),
        f"{KEY}.nvme_path=/nvme has no effect",
        "remove it",
    ),
    "on a CPU": (
        {**zero(offload_optimizer="cpu"), "trainer__accelerator": "cpu"},
        f"{KEY}.offload_optimizer=cpu has no effect on a CPU",
        "remove it",
    ),
    "an optimizer of whole matrices": (
        {
            **zero(offload_optimizer="cpu"),
            "model__optimizer": {
                "class_path": "TorchOptimizer",
                "init_args": {"optimizer": {"class_path": "torch.optim.Adafactor"}},
            },
        },
        "model.optimizer: Adafactor cannot update the flat fragments that ZeRO gives it",
        "set trainer.strategy to ddp or fsdp, or use AdamW",
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_each_rule(name: str, tmp_path: Path) -> None:
    overrides, start, way_out = RULES[name]
    path = write(tmp_path / "tiny.yaml", tiny(tmp_path / "run", **overrides))
    (line,) = refused("check", "-c", str(path))
    assert line.startswith(start)
    assert way_out in line


@pytest.mark.parametrize(
    "arguments",
    [
        {"stage": 1, "offload_optimizer": "cpu"},
        {"offload_optimizer": "cpu", "offload_parameters": "cpu"},
        {"offload_optimizer": "nvme", "offload_parameters": "nvme", "nvme_path": "/nvme"},
    ],
)
def test_offloading_is_checked_without_a_device(arguments: dict[str, Any], tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.yaml", tiny(tmp_path / "run", **zero(**arguments)))
    outcome = run("check", "-c", str(path))
    assert outcome.code == 0, outcome.err
