"""The formulas for bytes of optimizer state equal the tensors that a step leaves behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn, optim

from llm_train.model.network import Transformer
from llm_train.model.optimizer import (
    AdamW,
    LowBitAdamW,
    MuonAdamW,
    Optimizer,
    TorchOptimizer,
)
from llm_train.runtime.sharded import tensor_bytes

# Bytes per parameter of a layer's matrix, with float32 weights and with bfloat16 weights.
TABLE: dict[str, tuple[Optimizer, float, float]] = {
    "AdamW": (AdamW(learning_rate=0.01), 8.0, 4.0),
    "AdamW, not fused": (AdamW(learning_rate=0.01, fused="off"), 8.0, 4.0),
    "LowBitAdamW bf16": (LowBitAdamW(learning_rate=0.01, state="bf16"), 4.0, 4.0),
    "LowBitAdamW 8bit": (LowBitAdamW(learning_rate=0.01), 2.03125, 2.03125),
    "MuonAdamW": (MuonAdamW(learning_rate=0.01), 4.0, 2.0),
    "SGD": (TorchOptimizer(optimizer=lambda p: optim.SGD(p, lr=0.1)), 0.0, 0.0),
    "SGD with momentum": (
        TorchOptimizer(optimizer=lambda p: optim.SGD(p, lr=0.1, momentum=0.9)),
        4.0,
        2.0,
    ),
    "RMSprop": (TorchOptimizer(optimizer=lambda p: optim.RMSprop(p, lr=0.1)), 4.0, 2.0),
}


@pytest.fixture(autouse=True)
def _eager():
    pytest.importorskip("torchao")
    with torch.compiler.set_stance("force_eager"):
        yield


def network(dtype: torch.dtype) -> nn.Module:
    """Has matrices that are quantized (rows of 64 and 256), one that is not (96), and vectors."""
    torch.manual_seed(0)
    model = Transformer(vocab_size=50, layers=2, width=64, heads=2, max_sequence=8).build()
    model.register_module("odd", nn.Linear(96, 5))
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", TABLE)
def test_real_tensors_take_what_the_formula_says(name: str, dtype: torch.dtype) -> None:
    config, *expected = TABLE[name]
    model = network(dtype)
    named = dict(model.named_parameters())
    each = {parameter: config.state_bytes(key, parameter) for key, parameter in named.items()}
    optimizer = config.build(named.items())
    for parameter in named.values():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    found = {p: _bytes(state) for p, state in optimizer.state.items()}
    assert {p: found.get(p, 0) for p in named.values()} == each
    # What does not grow with the matrix (step counters, lookup tables) falls out of the difference.
    small, large = (torch.empty(n, 1024, dtype=dtype, device="meta") for n in (1024, 2048))
    more = [config.state_bytes("layers.0.weight", matrix) for matrix in (small, large)]
    assert (more[1] - more[0]) / small.numel() == expected[dtype == torch.bfloat16]


def _bytes(state: dict[str, Any]) -> int:
    return sum(tensor_bytes(value) for value in state.values() if isinstance(value, torch.Tensor))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["AdamW", "AdamW, not fused", "MuonAdamW"])
def test_a_step_without_memory_gives_the_formula(name: str, dtype: torch.dtype) -> None:
    """A class without a formula gets this measurement."""
    config = TABLE[name][0]
    for key, shape in {"layers.0.weight": (64, 64), "layers.0.norm": (64,)}.items():
        if isinstance(config, MuonAdamW) and len(shape) == 1:
            continue  # this class needs a matrix
        parameter = torch.empty(shape, dtype=dtype, device="meta")
        assert Optimizer.state_bytes(config, key, parameter) == config.state_bytes(key, parameter)
