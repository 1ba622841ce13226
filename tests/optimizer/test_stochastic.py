"""Stochastic rounding keeps what rounding to nearest loses, and costs 8 bytes a parameter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from llm_train.check import problems
from llm_train.cli.command import load_settings
from llm_train.logger.records import read_metrics
from llm_train.optimizer import StochasticAdamW
from llm_train.testing.configs import tiny, write
from llm_train.testing.nursery import Nursery

pytest.importorskip("torchao")


@pytest.fixture(autouse=True)
def _eager():
    """The update as it is written; compiling each shape takes seconds and changes no rule."""
    with torch.compiler.set_stance("force_eager"):
        yield


def moved(optimizer_of, dtype, steps=60):
    """Mean distance of weights at 1.0 after updates of 1e-4 each, far below bfloat16's 2**-8."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.ones(64, 128, dtype=dtype))
    optimizer = optimizer_of(weight)
    for _ in range(steps):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    return (1.0 - weight.float().mean()).item(), optimizer, weight


def test_small_updates_arrive_on_average():
    settings = {"lr": 1e-4, "betas": (0.9, 0.95), "weight_decay": 0.0}
    exact, *_ = moved(lambda w: torch.optim.AdamW([w], **settings), torch.float32)
    nearest, *_ = moved(lambda w: torch.optim.AdamW([w], **settings), torch.bfloat16)
    config = StochasticAdamW(learning_rate=1e-4, weight_decay=0.0)
    stochastic, *_ = moved(lambda w: config.build([("w", w)]), torch.bfloat16)
    assert exact == pytest.approx(60 * 1e-4, rel=1e-3)
    assert nearest == 0.0  # every update is rounded away
    # 8,192 weights: the mean of the roundings has a standard deviation of about 1 %.
    assert stochastic == pytest.approx(exact, rel=0.05)


def test_weight_gradient_and_moments_take_eight_bytes():
    config = StochasticAdamW(learning_rate=1e-4)
    _, optimizer, weight = moved(lambda w: config.build([("w", w)]), torch.bfloat16, steps=1)
    state = [t for t in optimizer.state[weight].values() if t.numel() > 1]
    tensors = [weight, weight.grad, *state]
    assert sum(t.numel() * t.element_size() for t in tensors) == 8 * weight.numel()


def settings_of(tmp_path: Path, **overrides):
    config = tiny(
        tmp_path / "run",
        model__optimizer={"class_path": "StochasticAdamW", "init_args": {"learning_rate": 0.01}},
        **overrides,
    )
    return load_settings(["-c", str(write(tmp_path / "c.yaml", config))])


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        ({}, "needs trainer.precision=bf16-true"),
        (
            {"trainer__precision": "bf16-true", "trainer__strategy": "ddp", "trainer__devices": 2},
            "would round the same weight differently",
        ),
    ],
)
def test_what_cannot_work_is_refused(tmp_path: Path, overrides, part):
    found = problems(settings_of(tmp_path, **overrides), running=False)
    assert len(found) == 1
    assert part in found[0]


def test_pure_bf16_is_accepted(tmp_path: Path):
    assert problems(settings_of(tmp_path, trainer__precision="bf16-true"), running=False) == []


@pytest.mark.slow
def test_a_run_resumes_bitwise(nursery: Nursery, tmp_path: Path):
    """Rounding draws random bits; the checkpoint holds the generator."""
    optimizer = {"class_path": "StochasticAdamW", "init_args": {"learning_rate": 0.01}}
    found = {}
    for name in ("alone", "resumed"):
        config = tiny(
            tmp_path / name, steps=8, model__optimizer=optimizer, trainer__precision="bf16-true"
        )
        path = str(write(tmp_path / f"{name}.yaml", config))
        log = tmp_path / f"{name}.txt"
        assert nursery.run("fit", "-c", path, ranks=0, log=log) == [0], log.read_text()
        if name == "resumed":
            step = tmp_path / name / "checkpoints" / "step-00000004"
            again = ["fit", "-c", path, "--resume", str(step)]
            assert nursery.run(*again, ranks=0, log=log) == [0], log.read_text()
        records = read_metrics(tmp_path / name / "metrics.jsonl")
        found[name] = {r["step"]: r["train/loss"] for r in records if "train/loss" in r}
    assert found["resumed"] == found["alone"]
    assert found["alone"][8] < found["alone"][1]
