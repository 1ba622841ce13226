"""Copies of weights: the same numbers as autocast's casts, made once a step."""

from __future__ import annotations

import collections
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from llm_train.model.loss import CausalLM, ChunkedCausalLM
from llm_train.model.network import Transformer, initialise
from llm_train.model.network.linear import HasShadow, Linear, ShadowWeights

CONFIG = Transformer(vocab_size=23, layers=2, width=16, heads=2, max_sequence=8)
LOSSES = [CausalLM(), ChunkedCausalLM(chunk_tokens=5)]


def built():
    network = CONFIG.build()
    initialise(network, 3)
    return network


def gradients(network, loss, tokens):
    with torch.autocast("cpu", torch.bfloat16):
        sums = network(tokens[:, :-1], partial(loss, targets=tokens[:, 1:]))
    sums.objective.backward()
    return sums.nats.item(), {n: p.grad for n, p in network.named_parameters()}


def some_tokens():
    return torch.randint(23, (2, 9), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_losses_and_gradients_are_those_of_autocast(loss):
    plain, copied = built(), built()
    ShadowWeights(copied, torch.bfloat16)
    expected = gradients(plain, loss, some_tokens())
    found = gradients(copied, loss, some_tokens())
    assert found[0] == expected[0]
    for name, gradient in expected[1].items():
        assert found[1][name].dtype == torch.float32
        torch.testing.assert_close(found[1][name], gradient, rtol=0, atol=0, msg=name)


def test_a_copy_is_stale_until_it_is_refreshed():
    layer = Linear(4, 3, bias=False)
    copies = ShadowWeights(layer, torch.bfloat16)
    x = torch.randn(2, 4, dtype=torch.bfloat16)
    before = layer(x)
    with torch.no_grad():
        layer.weight.add_(1.0)
    assert torch.equal(layer(x), before)
    copies.refresh()
    assert torch.equal(layer(x), F.linear(x, layer.weight.bfloat16()))


def test_a_copy_is_no_part_of_the_module():
    layer = Linear(4, 3)
    names = list(layer.state_dict())
    ShadowWeights(layer, torch.bfloat16)
    assert list(layer.state_dict()) == names
    assert [n for n, _ in layer.named_buffers()] == []


def test_every_matrix_that_is_multiplied_by_has_a_copy():
    network = built()
    copies = ShadowWeights(network, torch.bfloat16)
    matrices = [m for m in network.modules() if isinstance(m, nn.Linear)]
    assert len(copies) == len(matrices) + 1  # and the head
    assert all(isinstance(m, HasShadow) for m in matrices)


class _WeightCasts(TorchDispatchMode):
    """Counts casts of float32 tensors that have the shape of a weight."""

    def __init__(self, shapes):
        super().__init__()
        self.shapes, self.count = shapes, collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and out.dtype == torch.bfloat16:
            self.count[tuple(out.shape)] += tuple(out.shape) in self.shapes
        if func is torch.ops.aten._foreach_copy_.default:
            self.count["refresh"] += 1
        return out


def test_weights_are_cast_once_a_step_whatever_the_accumulation():
    """Autocast casts each of them in every micro-batch; here nothing but the refresh does."""
    tokens = some_tokens()
    found = {}
    for copied in (False, True):
        network = built()
        shapes = {tuple(m.weight.shape) for m in network.modules() if isinstance(m, HasShadow)}
        copies = ShadowWeights(network, torch.bfloat16) if copied else None
        with _WeightCasts(shapes) as mode:
            for _ in range(4):
                with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
                    sums = network(tokens[:, :-1], partial(CausalLM(), targets=tokens[:, 1:]))
            if copies is not None:
                copies.refresh()
        del sums
        found[copied] = sum(mode.count.values()) - mode.count["refresh"]
        assert mode.count["refresh"] == copied
    matrices = sum(isinstance(m, HasShadow) for m in built().modules())
    assert found == {False: 4 * matrices, True: 0}


def test_the_residual_stream_has_the_precision_of_autocast():
    network = built()
    seen = []
    for block in network.blocks():
        block.register_forward_hook(lambda _m, args, out: seen.append((args[0].dtype, out.dtype)))
    tokens = some_tokens()[:, :-1]
    with torch.autocast("cpu", torch.bfloat16):
        network(tokens, lambda hidden, _: seen.append((hidden.dtype,)))
    assert set(sum(seen, ())) == {torch.bfloat16}
    seen.clear()
    network(tokens, lambda hidden, _: seen.append((hidden.dtype,)))
    assert set(sum(seen, ())) == {torch.float32}
