"""Moments in 16 and 8 bits: their cost, learning, rounding, and bitwise resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from llm_train.check import problems
from llm_train.checkpoint import dcp, tensors
from llm_train.cli.dispatch import load_settings
from llm_train.errors import CheckpointError, ConfigError
from llm_train.model.optimizer import LowBitAdamW
from llm_train.model.optimizer.low_bit import block_size
from llm_train.testing.command import run
from llm_train.testing.configs import tiny, write
from llm_train.testing.fork_server import ForkServer
from llm_train.trainer.logger.records import read_metrics

pytest.importorskip("torchao")
STATES: tuple[Any, ...] = ("bf16", "8bit")


@pytest.fixture(autouse=True)
def _eager():
    """Runs updates uncompiled: compiling each shape takes seconds and changes no rule."""
    with torch.compiler.set_stance("force_eager"):
        yield


def moved(optimizer_of, dtype, steps=60):
    """Returns the mean change of weights of 1.0 by updates of 1e-4, far below bfloat16's 2**-8."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.ones(64, 128, dtype=dtype))
    optimizer = optimizer_of(weight)
    for _ in range(steps):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    return (1.0 - weight.float().mean()).item()


@pytest.mark.parametrize("kept", STATES)
def test_small_updates_of_bfloat16_weights_arrive_on_average(kept):
    settings = {"lr": 1e-4, "betas": (0.9, 0.95), "weight_decay": 0.0}
    exact = moved(lambda w: torch.optim.AdamW([w], **settings), torch.float32)
    nearest = moved(lambda w: torch.optim.AdamW([w], **settings), torch.bfloat16)
    config = LowBitAdamW(learning_rate=1e-4, state=kept, weight_decay=0.0)
    stochastic = moved(lambda w: config.build([("w", w)]), torch.bfloat16)
    assert exact == pytest.approx(60 * 1e-4, rel=1e-3)
    assert nearest == 0.0  # every update is rounded away
    # With 8,192 weights the mean of the roundings has a standard deviation of about 1 %.
    assert stochastic == pytest.approx(exact, rel=0.05)


def regression(optimizer_of, steps=40, width=64):
    """Returns the losses of a linear regression with float32 weights."""
    torch.manual_seed(0)
    model = nn.Linear(width, width)
    inputs, truth = torch.randn(256, width), torch.randn(width, width) / 8
    optimizer, losses = optimizer_of(model), []
    for _ in range(steps):
        loss = (model(inputs) - inputs @ truth).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return torch.tensor(losses), optimizer, model


@pytest.mark.parametrize(("kept", "near"), [("bf16", 0.02), ("8bit", 0.05)])
def test_float32_weights_learn_as_with_adamw(kept, near):
    exact, *_ = regression(
        lambda m: torch.optim.AdamW(m.parameters(), lr=0.01, betas=(0.9, 0.95), weight_decay=0.0)
    )
    config = LowBitAdamW(learning_rate=0.01, state=kept, weight_decay=0.0)
    found, *_ = regression(lambda m: config.build(m.named_parameters()))
    assert exact[-1] < 0.2 * exact[0]
    torch.testing.assert_close(found, exact, rtol=near, atol=0.0)


@pytest.mark.parametrize("kept", STATES)
def test_a_file_brings_the_state_back_bit_for_bit(kept, tmp_path):
    config = LowBitAdamW(learning_rate=0.01, state=kept)
    _, optimizer, model = regression(lambda m: config.build(m.named_parameters()), steps=3)
    dcp.write(tmp_path, tensors.state(model, optimizer))
    other = nn.Linear(64, 64)
    again = config.build(other.named_parameters())
    tensors.load(tmp_path, other, again)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert type(again.state[theirs]["exp_avg"]) is type(optimizer.state[mine]["exp_avg"])
        for key, value in optimizer.split(mine, optimizer.state[mine]).items():
            assert torch.equal(value, again.split(theirs, again.state[theirs])[key]), key
        mine.grad = torch.ones_like(mine)
        theirs.grad = torch.ones_like(theirs)
    optimizer.step()
    again.step()
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    stored = dcp.Reader(tmp_path).read_metadata().state_dict_metadata
    codes = [key for key in stored if "codes" in key]
    assert len(codes) == (0 if kept == "bf16" else 2)


def test_state_in_another_format_is_refused_before_anything_loads(tmp_path):
    eight = LowBitAdamW(learning_rate=0.01)
    _, optimizer, model = regression(lambda m: eight.build(m.named_parameters()), steps=1)
    dcp.write(tmp_path, tensors.state(model, optimizer))
    fresh = nn.Linear(64, 64)
    before = fresh.weight.detach().clone()
    config = LowBitAdamW(learning_rate=0.01, state="bf16")
    with pytest.raises(CheckpointError, match=r"weight.exp_avg is absent .* saved along") as caught:
        tensors.load(tmp_path, fresh, config.build(fresh.named_parameters()))
    assert "\n" not in str(caught.value)
    assert torch.equal(fresh.weight, before)


@pytest.mark.parametrize(
    ("columns", "blocks"), [(768, 256), (1600, 64), (1920, 128), (96, 0), (63, 0)]
)
def test_blocks_divide_rows(columns, blocks):
    assert block_size(torch.empty(2, columns, device="meta")) == blocks
    assert block_size(torch.empty(columns, device="meta")) == 0


def written(tmp_path: Path, name: str, **overrides: Any) -> str:
    optimizer = {"class_path": "LowBitAdamW", "init_args": {"learning_rate": 0.01}}
    width = {"model__network__init_args__width": 64}
    config = tiny(tmp_path / name, model__optimizer=optimizer, **(width | overrides))
    return str(write(tmp_path / f"{name}.yaml", config))


def settings_of(tmp_path: Path, **overrides: Any):
    return load_settings(["-c", written(tmp_path, "c", **overrides)])


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (
            {"trainer__precision": "bf16-true", "trainer__strategy": "ddp", "trainer__devices": 2},
            "would round the same weight differently",
        ),
        ({"trainer__strategy": "zero2", "trainer__devices": 2}, "needs whole matrices, and ZeRO"),
        (
            {"model__network__init_args__width": 16, "model__network__init_args__mlp_width": 32},
            "state=8bit has no effect: no matrix",
        ),
    ],
)
def test_what_cannot_work_is_refused(tmp_path: Path, overrides, part):
    found = problems(settings_of(tmp_path, **overrides), running=False)
    assert len(found) == 1
    assert part in found[0]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_every_precision_is_accepted(tmp_path: Path, precision):
    assert problems(settings_of(tmp_path, trainer__precision=precision), running=False) == []


def test_faulty_settings_are_refused():
    for removed in ("fp8", "4bit"):
        with pytest.raises(ConfigError, match=rf"state='{removed}' is not one of bf16, 8bit"):
            LowBitAdamW(learning_rate=0.1, state=removed)
    with pytest.raises(ConfigError, match=r"betas\[1\]=0\.999 with state=bf16 is above 0\.99"):
        LowBitAdamW(learning_rate=0.1, state="bf16", betas=(0.9, 0.999))


def losses(run_dir: Path) -> dict[int, float]:
    records = read_metrics(run_dir / "metrics.jsonl")
    return {r["step"]: r["train/loss"] for r in records if "train/loss" in r}


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_a_run_resumes_bitwise(precision, tmp_path: Path):
    """Rounding draws random bits, so the checkpoint holds the generator."""
    files = {
        name: written(tmp_path, name, trainer__precision=precision) for name in ("alone", "resumed")
    }
    assert run("fit", "-c", files["alone"]).code == 0
    start = str(tmp_path / "alone" / "checkpoints" / "step-00000002")
    assert run("fit", "-c", files["resumed"], "--resume", start).code == 0
    expected = losses(tmp_path / "alone")
    assert losses(tmp_path / "resumed") == {step: expected[step] for step in range(3, 7)}


@pytest.mark.slow
@pytest.mark.distributed
def test_compiled_updates_of_shards_resume_bitwise(fork_server: ForkServer, tmp_path: Path) -> None:
    """Processes of their own compile the update, as a run does."""
    found = {}
    for name in ("alone", "resumed"):
        overrides = {"trainer__strategy": "fsdp", "trainer__precision": "bf16-true"}
        arguments = ["fit", "-c", written(tmp_path, name, **overrides)]
        if name == "resumed":
            arguments += ["--resume", str(tmp_path / "alone" / "checkpoints" / "step-00000004")]
        log = tmp_path / f"{name}.txt"
        assert fork_server.run(*arguments, ranks=2, log=log) == [0, 0], log.read_text()
        found[name] = losses(tmp_path / name)
    assert found["resumed"] == {step: found["alone"][step] for step in (5, 6)}
    assert found["alone"][6] < found["alone"][1]
