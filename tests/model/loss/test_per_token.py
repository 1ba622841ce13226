"""Losses of single targets equal their formulas, in one piece and in chunks, and what they do."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.nn import functional as F

from llm_train.model.loss import CausalLM, ChunkedCausalLM
from llm_train.model.loss.any_chunked import Chunked
from llm_train.model.loss.class_weights import ClassWeights
from llm_train.model.loss.focal import Focal
from llm_train.model.loss.label_smoothing import LabelSmoothing
from llm_train.model.loss.squared_error import SquaredError
from llm_train.model.network import Transformer, initialise
from llm_train.model.network.base import Projection

N, D, V, VOCAB = 21, 8, 48, 41
WEIGHTS = {3: 0.25, 11: 0.0, 40: 4.0}


def cross_entropy(logits, targets):
    return F.cross_entropy(logits, targets, reduction="none")


def focal(gamma):
    def formula(logits, targets):
        p = logits.softmax(-1)[torch.arange(len(targets)), targets]
        return -((1 - p) ** gamma) * p.log()

    return formula


def weighted(logits, targets):
    weight = torch.tensor([WEIGHTS.get(token, 1.0) for token in range(VOCAB)]).double()
    return F.cross_entropy(logits, targets, weight=weight, reduction="none")


FORMULAS = {
    "smoothing": (
        LabelSmoothing(),
        partial(F.cross_entropy, label_smoothing=0.1, reduction="none"),
    ),
    "focal": (Focal(), focal(2.0)),
    "focal, below 1": (Focal(gamma=0.5), focal(0.5)),
    "weights": (ClassWeights(weights=WEIGHTS), weighted),
    "squared": (
        SquaredError(),
        lambda z, y: (z.softmax(-1) - F.one_hot(y, VOCAB)).square().sum(-1) / 2,
    ),
    "cross-entropy": (CausalLM(), cross_entropy),
    "z-loss": (
        ClassWeights(weights={0: 1.0}, loss=CausalLM(z_loss=0.1)),
        lambda z, y: cross_entropy(z, y) + 0.1 * z.logsumexp(-1) ** 2,
    ),
}


@pytest.mark.parametrize("cap", [0.0, 2.0])
@pytest.mark.parametrize("name", FORMULAS)
def test_values_and_gradients_equal_the_formula(name, cap):
    loss, formula = FORMULAS[name]
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 7, D, dtype=torch.float64, generator=generator).requires_grad_()
    weight = torch.randn(V, D, dtype=torch.float64, generator=generator).requires_grad_()
    targets = torch.randint(0, VOCAB, (3, 7), generator=generator)
    targets[0, :5] = torch.tensor([3, 11, 40, 3, 11])
    targets[1, :3] = -100
    valid = targets.flatten() != -100
    logits = (hidden @ weight.T).flatten(0, 1)[valid, :VOCAB]
    logits = cap * torch.tanh(logits / cap) if cap else logits
    expected = formula(logits, targets.flatten()[valid]).sum()
    nats = cross_entropy(logits, targets.flatten()[valid]).sum()
    gradients = torch.autograd.grad(expected, [hidden, weight])
    for form in (loss, Chunked(loss=loss, chunk_tokens=4), Chunked(loss=loss, chunk_tokens=100)):
        found = form(hidden, Projection(weight, VOCAB, cap), targets)
        torch.testing.assert_close(found.objective, expected, rtol=1e-12, atol=0)
        torch.testing.assert_close(found.nats, nats, rtol=1e-12, atol=0)  # whatever the objective
        assert found.tokens == valid.sum()
        own = torch.autograd.grad(found.objective, [hidden, weight])
        torch.testing.assert_close(own, gradients, rtol=1e-10, atol=1e-12)
        with torch.no_grad():
            again = form(hidden, Projection(weight, VOCAB, cap), targets)
        assert again.objective == found.objective


def test_autocast_and_shadows_reach_every_chunk():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, N, D, generator=generator).requires_grad_()
    weight = torch.randn(V, D, generator=generator).requires_grad_()
    targets = torch.randint(0, VOCAB, (1, N), generator=generator)
    for shadow in (None, weight.detach().bfloat16()):
        projection = Projection(weight, VOCAB, 0.0, shadow)
        sums, gradients = [], []
        for loss in (Focal(), Chunked(loss=Focal(), chunk_tokens=5)):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                sums.append(loss(hidden, projection, targets))
            gradients.append(torch.autograd.grad(sums[-1].objective, [hidden, weight]))
        torch.testing.assert_close(sums[0].objective, sums[1].objective, rtol=1e-6, atol=1e-5)
        assert gradients[1][1].dtype == torch.float32
        torch.testing.assert_close(*gradients, rtol=2e-2, atol=2e-2)


def test_squared_error_saturates_where_cross_entropy_does_not():
    """Two tokens, 99 to 1 for the wrong one."""
    logits = torch.tensor([[0.01, 0.99]]).log().requires_grad_()
    slopes = {}
    for loss in (CausalLM(), SquaredError()):
        objective, _ = loss.score(logits, torch.tensor([0]))
        slopes[type(loss).__name__] = torch.autograd.grad(objective, logits)[0][0, 0].item()
    assert slopes["CausalLM"] == pytest.approx(-0.99)
    assert slopes["SquaredError"] == pytest.approx(-0.02, rel=0.02)


def test_the_hessian_at_the_logits_is_semidefinite():
    """diag(p) - p p^T: no slope along a constant, which changes no probability; else positive."""
    logits = torch.randn(1, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    hessian = torch.autograd.functional.hessian(
        lambda z: CausalLM().score(z, torch.tensor([4]))[0], logits
    )[0, :, 0]
    p = logits.softmax(-1)[0]
    torch.testing.assert_close(hessian, p.diag() - p.outer(p))
    values = torch.linalg.eigvalsh(hessian)
    assert abs(values[0]) < 1e-15 < values[1]
    torch.testing.assert_close(hessian.sum(-1), torch.zeros(9, dtype=torch.float64))


def test_a_network_that_starts_sure_and_wrong_learns_with_one_of_them():
    config = Transformer(
        vocab_size=16, layers=1, width=16, heads=2, max_sequence=16, init={"head.*": "normal 100"}
    )
    tokens = torch.arange(17)[None] * 5 % 16  # each token follows from the one before
    after = {}
    for loss in (CausalLM(), SquaredError()):
        network = config.build()
        initialise(network, 0)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        for _ in range(60):
            sums = network(tokens[:, :-1], partial(loss, targets=tokens[:, 1:]))
            (sums.objective / sums.tokens).backward()
            optimizer.step()
            optimizer.zero_grad()
        after[type(loss).__name__] = sums.nats.item() / 16
    assert after["CausalLM"] < 0.1
    assert after["SquaredError"] > 5.0  # log 16 = 2.8 is what knowing nothing costs


@pytest.mark.parametrize("loss", [CausalLM(), ChunkedCausalLM(), Chunked(loss=CausalLM())])
@pytest.mark.parametrize(("level", "gap"), [(1e4, 1.0), (-1e4, 1.0), (0.0, 2e8)])
def test_large_logits_and_large_gaps_are_exact(loss, level, gap):
    """The target is ``gap`` below another; nothing overflows, and slopes are those of p."""
    hidden = torch.ones(1, 1, 1).requires_grad_()
    weight = torch.tensor([[level], [level + gap], [level]]).requires_grad_()
    sums = loss(hidden, Projection(weight, 3, 0.0), torch.tensor([[0]]))
    exact = weight.detach().double().flatten()
    expected = exact.logsumexp(0) - exact[0]
    # The closed form of ChunkedCausalLM rounds log Z to float32, whose steps at 1e4 are 1e-3.
    tolerance = 1e-3 if isinstance(loss, ChunkedCausalLM) else 1e-6
    assert sums.nats.item() == pytest.approx(expected.item(), rel=1e-6, abs=tolerance)
    (slope,) = torch.autograd.grad(sums.objective, weight)
    target = torch.tensor([1.0, 0.0, 0.0]).double()
    torch.testing.assert_close(
        slope.flatten().double(), exact.softmax(0) - target, rtol=0, atol=tolerance
    )
