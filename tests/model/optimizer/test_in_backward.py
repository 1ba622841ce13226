"""Updating in backward equals the ordinary update bit for bit, with one gradient at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn, optim

from llm_train.check import problems
from llm_train.cli.dispatch import load_settings
from llm_train.model.network import Transformer, initialise
from llm_train.model.optimizer import AdamW, TorchOptimizer
from llm_train.model.optimizer.clipping import clip_by_norm
from llm_train.model.optimizer.in_backward import InBackward
from llm_train.testing.command import run
from llm_train.testing.configs import tiny, write
from llm_train.testing.fork_server import ForkServer
from llm_train.trainer.logger.records import read_metrics

CONFIGS = [
    AdamW(learning_rate=0.01),
    AdamW(learning_rate=0.01, fused="off"),
    TorchOptimizer(optimizer=lambda p: optim.SGD(p, lr=0.1, momentum=0.9)),
    TorchOptimizer(optimizer=lambda p: optim.Adafactor(p, lr=0.1)),
]


def network(tied: bool) -> nn.Module:
    model = Transformer(
        vocab_size=31, layers=2, width=16, heads=2, max_sequence=12, tied=tied
    ).build()
    initialise(model, 3)
    return model


def backward(model: nn.Module, step: int) -> None:
    tokens = torch.randint(31, (4, 13), generator=torch.Generator().manual_seed(step))
    logits = model(tokens[:, :-1], lambda hidden, projection: projection.logits(hidden))
    nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("config", CONFIGS, ids=["fused", "AdamW", "SGD", "Adafactor"])
def test_the_update_is_the_ordinary_one_with_one_gradient_alive(config: Any, tied: bool) -> None:
    plain, mine = network(tied), network(tied)
    ordinary = config.build(plain.named_parameters())
    optimizer = config.build(mine.named_parameters())
    updates = InBackward(optimizer)
    alive: list[int] = []
    for parameter in mine.parameters():  # these hooks run after the one that updates
        parameter.register_post_accumulate_grad_hook(
            lambda _: alive.append(sum(p.grad is not None for p in mine.parameters()))
        )
    for step in range(3):
        for group in (*ordinary.param_groups, *optimizer.param_groups):
            group["lr"] = 0.01 * (step + 1)  # a schedule sets it before backward
        backward(plain, step)
        norm = clip_by_norm(ordinary.param_groups, None)
        ordinary.step()
        ordinary.zero_grad()
        backward(mine, step)
        state = {p: {k: v.clone() for k, v in s.items()} for p, s in optimizer.state.items()}
        optimizer.step()  # Lightning calls it, too; it finds no gradient
        assert torch.equal(updates.take_norm(), norm)
        for p, values in state.items():
            assert all(torch.equal(v, optimizer.state[p][k]) for k, v in values.items())
    assert set(alive) == {0}
    for (name, a), b in zip(mine.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert optimizer.state[a].keys() == ordinary.state[b].keys()
        assert all(torch.equal(v, ordinary.state[b][k]) for k, v in optimizer.state[a].items())


def config(run_dir: Path, update: str, **overrides: Any) -> dict[str, Any]:
    free = {"batch__per_device": 8, "trainer__gradient_clip_val": None, "model__update": update}
    return tiny(run_dir, **(free | overrides))


def curve(run_dir: Path) -> dict[int, tuple[float, float]]:
    records = read_metrics(run_dir / "metrics.jsonl")
    return {r["step"]: (r["train/loss"], r["grad/norm"]) for r in records if "train/loss" in r}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_runs_and_their_checkpoints_are_the_same(precision: str, tmp_path: Path) -> None:
    files = {
        update: str(
            write(
                tmp_path / f"{update}.yaml",
                config(tmp_path / update, update, trainer__precision=precision),
            )
        )
        for update in ("step", "backward")
    }
    for file in files.values():
        assert run("fit", "-c", file).code == 0
    whole = curve(tmp_path / "step")
    assert len(whole) == 6
    assert min(norm for _, norm in whole.values()) > 0
    assert curve(tmp_path / "backward") == whole
    if precision != "32-true":
        return
    for source, target in (("step", "backward"), ("backward", "step")):
        start = str(tmp_path / source / "checkpoints" / "step-00000004")
        moved = f"--trainer.default_root_dir={tmp_path / f'to-{target}'}"
        assert run("fit", "-c", files[target], "--resume", start, moved).code == 0
        assert curve(tmp_path / f"to-{target}") == {step: whole[step] for step in (5, 6)}


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("strategy", "per_device"), [("fsdp", 4), pytest.param("tp", 8, marks=pytest.mark.slow)]
)
def test_two_ranks_do_the_same(
    strategy: str, per_device: int, fork_server: ForkServer, tmp_path: Path
) -> None:
    overrides = {
        "trainer__strategy": strategy,
        "batch__per_device": per_device,
        "model__network__init_args__pad_vocab_to": 2,
        "model__network__init_args__mlp_width": 128,
    }
    for update in ("step", "backward"):
        settings = config(tmp_path / update, update, **overrides)
        file = str(write(tmp_path / f"{update}.yaml", settings))
        log = tmp_path / f"{update}.txt"
        assert fork_server.run("fit", "-c", file, ranks=2, log=log) == [0, 0], log.read_text()
    assert len(curve(tmp_path / "step")) == 6
    assert curve(tmp_path / "backward") == curve(tmp_path / "step")


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        ({"trainer__gradient_clip_val": 1.0}, "with trainer.gradient_clip_val=1.0: the global"),
        ({"batch__per_device": 2}, "with 4 micro-batches a step would update after each"),
        (
            {"trainer__strategy": "ddp", "trainer__devices": 2, "batch__per_device": 4},
            "under DDP, which reduces gradients after they would be used",
        ),
        (
            {"trainer__strategy": "zero1", "trainer__devices": 2, "batch__per_device": 4},
            "under ZeRO, which reduces gradients after they would be used",
        ),
        (
            {"model__optimizer": {"class_path": "MuonAdamW", "init_args": {"learning_rate": 0.1}}},
            "with model.optimizer=MuonAdamW, which updates parameters together",
        ),
        ({"model__loss__class_path": "CausalLM", "model__loss__init_args__ignore_index": 3}, "div"),
        ({"model__compile": "network"}, "with model.compile=network frees nothing early"),
    ],
)
def test_what_cannot_work_is_refused(overrides: dict[str, Any], part: str, tmp_path: Path) -> None:
    settings = config(tmp_path / "run", "backward", **overrides)
    file = str(write(tmp_path / "c.yaml", settings))
    (line,) = problems(load_settings(["-c", file]), running=False)
    assert line.startswith("model.update=backward")
    assert part in line
