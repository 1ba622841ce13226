"""Shadow weights: the same numbers as autocast's casts, made once a step."""

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
from llm_train.model.network.shadow import HasShadow, ShadowedLinear, ShadowWeights

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


def _averaged(layer, other):
    layer.eval()
    layer.weight.data.copy_(other)  # as Lightning's WeightAveraging swaps weights


def _stepped(layer, other, **kind):
    optimizer = torch.optim.AdamW(layer.parameters(), **kind)
    layer.shadows.follow(optimizer)
    layer.weight.grad = other
    optimizer.step()


@torch.inference_mode()
def _inferred(layer, other):
    torch._foreach_copy_(list(layer.parameters()), [other])


CHANGES = {
    "in place": lambda layer, other: layer.weight.detach().copy_(other),
    "loaded": lambda layer, other: layer.load_state_dict({"weight": other}),
    "in inference mode": _inferred,
    "data of another phase": _averaged,
    "fused": partial(_stepped, fused=True),
    "foreach": partial(_stepped, foreach=True),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_shadow_follows_its_weight_whoever_changed_it(change):
    layer = ShadowedLinear(4, 3, bias=False)
    layer.shadows = ShadowWeights(layer, torch.bfloat16)
    x = torch.randn(2, 4, dtype=torch.bfloat16)
    before = layer(x)
    change(layer, torch.randn(3, 4))
    assert not torch.equal(layer(x), before)
    assert torch.equal(layer(x), F.linear(x, layer.weight.bfloat16()))


def test_a_shadow_is_no_part_of_the_module():
    layer = ShadowedLinear(4, 3)
    names = list(layer.state_dict())
    ShadowWeights(layer, torch.bfloat16)
    assert list(layer.state_dict()) == names
    assert [n for n, _ in layer.named_buffers()] == []


def test_every_matrix_that_is_multiplied_by_has_a_shadow():
    network = built()
    ShadowWeights(network, torch.bfloat16)
    matrices = [m for m in network.modules() if isinstance(m, nn.Linear)]
    shadowed = [m for m in network.modules() if isinstance(m, HasShadow) and m.shadow is not None]
    assert shadowed == [*matrices, network.head]


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
    """Autocast casts each weight in every micro-batch; here only the refresh casts them."""
    tokens = some_tokens()
    found = {}
    for copied in (False, True):
        network = built()
        shapes = {tuple(m.weight.shape) for m in network.modules() if isinstance(m, HasShadow)}
        if copied:
            ShadowWeights(network, torch.bfloat16)
        with _WeightCasts(shapes) as mode:
            for micro_batch in range(8):
                assert mode.count["refresh"] == (copied and micro_batch > 4)
                if micro_batch == 4:
                    with torch.no_grad():
                        network.load_state_dict({k: 2 * v for k, v in network.state_dict().items()})
                with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
                    sums = network(tokens[:, :-1], partial(CausalLM(), targets=tokens[:, 1:]))
        del sums
        found[copied] = sum(mode.count.values()) - mode.count["refresh"]
        assert mode.count["refresh"] == copied
    matrices = sum(isinstance(m, HasShadow) for m in built().modules())
    assert found == {False: 8 * matrices, True: 0}


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
