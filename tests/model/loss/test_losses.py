"""The chunked loss equals the plain one, which equals torch's and closed forms."""

import math
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llm_train.errors import ConfigError
from llm_train.model.loss import CausalLM, ChunkedCausalLM
from llm_train.model.loss.chunked import _chunk
from llm_train.model.loss.class_weights import ClassWeights
from llm_train.model.loss.label_smoothing import LabelSmoothing
from llm_train.model.network.base import Projection

B, T, D, V, VOCAB = 3, 7, 8, 48, 41


def example(vocab=V, cap=0.0, ignored="some", scale=1.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(B, T, D, generator=generator).to(dtype).requires_grad_()
    weight = (torch.randn(V, D, generator=generator) * scale).to(dtype).requires_grad_()
    targets = torch.randint(0, vocab, (B, T), generator=generator)
    if ignored == "some":
        targets[0, :3] = -100
        targets[2, 4] = -100
    elif ignored == "all":
        targets[:] = -100
    return hidden, Projection(weight, vocab, cap), targets


def run(loss, hidden, projection, targets, factor=0.37):
    """Returns value and gradients, with an upstream factor that is not one."""
    out = loss(hidden, projection, targets)
    grads = torch.autograd.grad(out.objective * factor, [hidden, projection.weight])
    return out, grads


@pytest.mark.parametrize("ignored", ["none", "some", "all"])
@pytest.mark.parametrize("cap", [0.0, 2.0])
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
@pytest.mark.parametrize("vocab", [V, VOCAB])
@pytest.mark.parametrize("chunk_tokens", [1, 7, 8, 100])
def test_chunked_equals_plain(ignored, cap, z_loss, vocab, chunk_tokens):
    arguments = example(vocab, cap, ignored)
    plain, plain_grads = run(CausalLM(z_loss=z_loss), *arguments)
    chunked, chunked_grads = run(
        ChunkedCausalLM(z_loss=z_loss, chunk_tokens=chunk_tokens), *arguments
    )
    for a, b in zip(plain, chunked, strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape == ()
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    for a, b in zip(plain_grads, chunked_grads, strict=True):
        assert a.isfinite().all()
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    if ignored == "all":
        assert chunked.tokens == 0
        assert chunked.objective == 0.0
        assert not any(grad.any() for grad in chunked_grads)


@pytest.mark.parametrize("z_loss", [0.0, 0.5])
@pytest.mark.parametrize("kind", [CausalLM, partial(ChunkedCausalLM, chunk_tokens=4)])
def test_a_zero_weight_gives_the_log_of_the_real_vocabulary(kind, z_loss):
    """The z-loss is in the objective and not in the nats."""
    out = kind(z_loss=z_loss)(*example(VOCAB, scale=0.0))
    assert out.tokens == B * T - 4
    assert out.nats.item() == pytest.approx((B * T - 4) * math.log(VOCAB), rel=1e-6)
    expected = z_loss * (B * T - 4) * math.log(VOCAB) ** 2
    assert (out.objective - out.nats).item() == pytest.approx(expected, rel=1e-6)
    assert not out.nats.requires_grad


def test_plain_equals_torch_and_another_ignore_index_works():
    hidden, projection, targets = example()
    other = torch.where(targets == -100, 5, targets)
    logits = (hidden @ projection.weight.T).flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(
        logits, other.flatten(), ignore_index=5, reduction="sum"
    )
    for loss in (CausalLM(ignore_index=5), ChunkedCausalLM(ignore_index=5, chunk_tokens=6)):
        out = loss(hidden, projection, other)
        torch.testing.assert_close(out.nats, expected, rtol=1e-6, atol=1e-5)
        assert out.tokens == (other != 5).sum()


@pytest.mark.parametrize("cap", [0.0, 5.0])
def test_autocast_multiplies_in_bfloat16_as_the_plain_loss_does(cap):
    arguments = example(VOCAB, cap)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain, plain_grads = run(CausalLM(), *arguments)
        chunked, chunked_grads = run(ChunkedCausalLM(chunk_tokens=5), *arguments)
    # The bfloat16 logits are the same, so the losses differ only by the order of summation.
    torch.testing.assert_close(plain.nats, chunked.nats, rtol=1e-6, atol=1e-5)
    for a, b in zip(plain_grads, chunked_grads, strict=True):
        assert a.dtype == b.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)


def test_bfloat16_weights_accumulate_in_float32():
    reference = example()
    low = example(dtype=torch.bfloat16)
    _, expected = run(CausalLM(), *reference)
    out, grads = run(ChunkedCausalLM(chunk_tokens=2), *low)
    assert out.objective.dtype == torch.float32
    for a, b in zip(grads, expected, strict=True):
        assert a.dtype == torch.bfloat16
        torch.testing.assert_close(a.float(), b, rtol=3e-2, atol=3e-2)


def test_tied_and_derived_weights_get_the_same_gradient():
    tokens = torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(1))

    def gradient(loss, tied):
        torch.manual_seed(0)
        table = torch.nn.Parameter(torch.randn(V, D))
        weight = table if tied else table * 0.5 + 0.1  # the second is not a leaf
        hidden = torch.nn.functional.embedding(tokens, table)
        (loss(hidden, Projection(weight, VOCAB, 3.0), tokens % VOCAB).objective / 21).backward()
        return table.grad

    for tied in (True, False):
        torch.testing.assert_close(
            gradient(CausalLM(), tied), gradient(ChunkedCausalLM(chunk_tokens=4), tied)
        )


@pytest.mark.parametrize("which", [0, 1])
def test_a_frozen_input_gets_no_gradient(which):
    hidden, projection, targets = example()
    inputs = [hidden, projection.weight]
    inputs[which].requires_grad_(False)
    ChunkedCausalLM(chunk_tokens=4)(hidden, projection, targets).objective.backward()
    assert inputs[which].grad is None
    assert inputs[1 - which].grad is not None


def test_backward_can_run_twice_and_refuses_second_derivatives():
    hidden, projection, targets = example()
    factor = torch.tensor(2.0, requires_grad=True)
    objective = ChunkedCausalLM(chunk_tokens=4)(hidden, projection, targets).objective * factor
    first, *_ = torch.autograd.grad(objective, [hidden], retain_graph=True)
    second, *_ = torch.autograd.grad(objective, [hidden], create_graph=True)
    assert torch.equal(first, second)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        second.sum().backward()


class _Largest(TorchDispatchMode):
    """Records every operator, and the size of the largest tensor that any of them returned."""

    def __init__(self):
        super().__init__()
        self.elements = 0
        self.operators = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        self.operators.add(func)
        return out


@pytest.mark.parametrize("cap", [0.0, 5.0])
def test_the_chunked_loss_never_holds_all_logits(cap):
    # V * D < chunk * V, so that the largest tensor is the logits and not the weight's gradient.
    arguments = example(VOCAB, cap)
    chunk_tokens = D + 1
    with _Largest() as plain:
        run(CausalLM(z_loss=0.1), *arguments)
    with _Largest() as chunked:
        run(ChunkedCausalLM(z_loss=0.1, chunk_tokens=chunk_tokens), *arguments)
    assert plain.elements == B * T * V
    assert chunked.elements == chunk_tokens * V


def test_a_traced_chunk_is_bitwise_the_same_and_scatters_nothing():
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph.code)
        return graph.forward

    loss, arguments = ChunkedCausalLM(z_loss=0.1, chunk_tokens=8), example(VOCAB)
    traced = torch.compile(_chunk, dynamic=False, backend=backend)
    (_, expected), (_, found) = (
        run(scorer, *arguments) for scorer in (loss, partial(loss._score, chunk=traced))
    )
    for a, b in zip(expected, found, strict=True):
        assert torch.equal(a, b)
    assert graphs
    # Inductor would end a kernel at a scatter, and write float32 gradients for the next.
    assert not any("scatter" in code for code in graphs)


def test_without_gradients_nothing_but_the_loss_is_computed():
    arguments = example()
    loss = ChunkedCausalLM(chunk_tokens=4)
    expected = loss(*arguments).nats
    with torch.no_grad(), _Largest() as mode:
        out = loss(*arguments)
    assert out.nats == expected
    assert torch.ops.aten.scatter_add_.default not in mode.operators


@pytest.mark.parametrize("loss", [CausalLM(z_loss=0.1), ChunkedCausalLM(z_loss=0.1)])
def test_no_operator_waits_for_the_device(loss):
    aten = torch.ops.aten
    with _Largest() as mode:
        run(loss, *example(VOCAB, 2.0))
    waits = {aten._local_scalar_dense.default, aten.nonzero.default, aten.index.Tensor}
    assert not waits & mode.operators


def test_faulty_settings_are_refused():
    with pytest.raises(ConfigError, match=r"loss\.z_loss=-1\.0 must be at least 0; write 0"):
        CausalLM(z_loss=-1.0)
    with pytest.raises(ConfigError, match=r"loss\.z_loss=nan"):
        ChunkedCausalLM(z_loss=float("nan"))
    with pytest.raises(ConfigError, match=r"loss\.smoothing=1\.0 must be .* a usual value is 0\.1"):
        LabelSmoothing(smoothing=1.0)
    with pytest.raises(ConfigError, match=r"loss\.weights: 3: -1\.0 must be"):
        ClassWeights(weights={3: -1.0})
    with pytest.raises(ConfigError, match=r"loss\.chunk_tokens=0 must be at least 1; write 1024"):
        ChunkedCausalLM(chunk_tokens=0)
