"""The whole network in float64: its gradients equal central differences, forwards and twice too."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import get_args, get_type_hints

import pytest
import torch
from torch.func import functional_call, jvp

from llm_train.model.loss import CausalLM, ChunkedCausalLM
from llm_train.model.network import Transformer, initialise
from llm_train.model.network.activations import Activation
from llm_train.model.network.sdpa import attention_kernel

BASE = Transformer(
    vocab_size=23, pad_vocab_to=8, layers=2, width=16, heads=4, kv_heads=2, max_sequence=9,
    mlp_width=12, qk_norm=True, bias=True, soft_cap=3.0, init_std=0.3,
)  # fmt: skip
HINTS = get_type_hints(Transformer)
CHOICES = [
    *({"activation": word} for word in get_args(Activation)),
    *({"positions": word} for word in get_args(HINTS["positions"])),
    *({"norm_placement": word, "norm": "layernorm"} for word in get_args(HINTS["norm_placement"])),
    {"norm": "none"},
    {"tied": True},
]


def example(config):
    """A network, and its objective as a function of its parameters."""
    network = config.build()
    initialise(network, 0)
    network = network.double()
    tokens = torch.randint(23, (2, 8), generator=torch.Generator().manual_seed(0))
    targets = tokens.roll(-1, dims=1)

    def objective(parameters, loss=CausalLM(z_loss=0.01)):  # noqa: B008 - frozen
        readout = partial(loss, targets=targets)
        return functional_call(network, parameters, (tokens, readout)).objective

    return dict(network.named_parameters()), objective


def direction(parameters, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(p.shape, dtype=torch.float64, generator=generator)
        for name, p in parameters.items()
    }


def along(objective, parameters, names, step, move):
    with torch.no_grad():
        moved = {k: p + step * move[k] if k in names else p for k, p in parameters.items()}
        return objective(moved)


@pytest.mark.parametrize("changes", CHOICES, ids=lambda c: next(iter(c.values())))
def test_gradients_equal_central_differences(changes):
    """One parameter after the other, along a random direction."""
    parameters, objective = example(replace(BASE, layers=1, **changes))
    value = objective(parameters)
    assert value.dtype == torch.float64
    gradients = torch.autograd.grad(value, list(parameters.values()))
    move, step = direction(parameters), 2e-6
    for name, gradient in zip(parameters, gradients, strict=True):
        up, down = (along(objective, parameters, [name], s, move) for s in (step, -step))
        found = (gradient * move[name]).sum()
        torch.testing.assert_close((up - down) / (2 * step), found, rtol=1e-7, atol=1e-7, msg=name)
    chunked = objective(parameters, ChunkedCausalLM(z_loss=0.01, chunk_tokens=5))
    torch.testing.assert_close(chunked, value, rtol=1e-14, atol=0)
    for a, b in zip(
        torch.autograd.grad(chunked, list(parameters.values())), gradients, strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # by torch.func.jvp
@pytest.mark.parametrize(
    "changes", [{}, {"norm": "layernorm", "positions": "alibi", "activation": "gelu"}]
)
def test_the_math_kernel_differentiates_forwards_and_twice(changes):
    parameters, objective = example(replace(BASE, **changes))
    move, step = direction(parameters), 2e-6
    leaves = list(parameters.values())
    with attention_kernel("math", torch.device("cpu")):
        gradients = torch.autograd.grad(objective(parameters), leaves, create_graph=True)
        slope = sum((g * move[k]).sum() for k, g in zip(parameters, gradients, strict=True))
        products = torch.autograd.grad(slope, leaves)  # of the Hessian with the direction
        plain = {k: p.detach() for k, p in parameters.items()}
        _, forwards = jvp(objective, (plain,), (move,))
        sides = []
        for s in (step, -step):
            moved = {k: (p + s * move[k]).detach().requires_grad_() for k, p in plain.items()}
            sides.append(torch.autograd.grad(objective(moved), list(moved.values())))
    torch.testing.assert_close(forwards, slope.detach(), rtol=1e-12, atol=1e-12)
    for product, up, down in zip(products, *sides, strict=True):
        assert ((up - down) / (2 * step) - product).norm() <= 1e-6 * product.norm() + 1e-7
