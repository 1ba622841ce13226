"""Derivatives against closed forms and whole Hessians; the step-size limit, on two losses."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llm_train.analysis import (
    Point,
    central_difference,
    descend,
    dot,
    gradient,
    hvp,
    jvp,
    largest_eigenvalue,
    loss_of,
    moved,
    random_direction,
)
from llm_train.model.loss import CausalLM
from llm_train.model.network import Transformer, initialise

TOLERANCE = 1e-6
L = 8.0
CURVATURES = torch.tensor([L, 3.0, 0.5], dtype=torch.float64)


def quadratic(at: Point) -> Tensor:
    return 0.5 * (CURVATURES * at["w"] ** 2).sum()


def saddle(at: Point) -> Tensor:
    return 0.5 * (torch.tensor([2.0, -9.0, 1.0]) * at["w"] ** 2).sum()


class Scored(nn.Module):
    """The loss of a tiny network on one batch."""

    def __init__(self, seed: int = 3, **overrides: Any) -> None:
        super().__init__()
        config: Any = {"vocab_size": 17, "layers": 2, "width": 8, "heads": 2, "max_sequence": 8}
        self.network = Transformer(**config, **overrides).build()
        initialise(self.network, seed)
        self.double()
        generator = torch.Generator().manual_seed(1)
        self.tokens = torch.randint(17, (4, 9), generator=generator)

    def forward(self) -> Tensor:
        loss = partial(CausalLM(), targets=self.tokens[:, 1:])
        sums = self.network(self.tokens[:, :-1], loss)
        return sums.objective / 32


def test_the_network_has_the_gradient_of_central_differences_in_float64() -> None:
    loss, at = loss_of(Scored())
    slopes = gradient(loss, at)
    for seed in range(3):
        along = random_direction(at, seed)
        expected = central_difference(loss, at, along)
        assert dot(slopes, along) == pytest.approx(expected, rel=TOLERANCE, abs=TOLERANCE)
        assert float(jvp(loss, at, along)) == pytest.approx(dot(slopes, along), rel=TOLERANCE)
        ahead, behind = (gradient(loss, moved(at, along, h)) for h in (1e-4, -1e-4))
        product = hvp(loss, at, along)
        for name, tensor in product.items():
            difference = (ahead[name] - behind[name]) / 2e-4
            torch.testing.assert_close(tensor, difference, rtol=1e-4, atol=1e-6, msg=name)


def test_the_largest_eigenvalue_is_that_of_the_whole_hessian() -> None:
    at = {"w": torch.ones(3, dtype=torch.float64)}
    assert largest_eigenvalue(quadratic, at).value == pytest.approx(L, rel=1e-4)
    assert largest_eigenvalue(saddle, {"w": torch.ones(3)}).value == pytest.approx(2.0, rel=1e-4)
    torch.manual_seed(0)
    layer = nn.Linear(5, 4).double()
    x, y = torch.randn(30, 5, dtype=torch.float64), torch.randint(4, (30,))

    def regression(at: Point) -> Tensor:
        return nn.functional.cross_entropy(torch.func.functional_call(layer, at, (x,)), y)

    _, point = loss_of(layer)
    flat = torch.cat([tensor.flatten() for tensor in point.values()])

    def of_flat(values: Tensor) -> Tensor:
        weight, bias = values.split([20, 4])
        return regression({"weight": weight.view(4, 5), "bias": bias})

    expected = torch.linalg.eigvalsh(torch.func.hessian(of_flat)(flat))[-1]
    found = largest_eigenvalue(regression, point, tolerance=1e-9)
    assert found.value == pytest.approx(float(expected), rel=1e-5)


def test_a_quadratic_shrinks_up_to_1_over_l_oscillates_up_to_2_and_grows_beyond() -> None:
    """The steepest coordinate is multiplied by 1 - rate L in each step."""
    at = {"w": torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)}
    for rate, factor in ((0.5 / L, 0.5), (1.5 / L, -0.5), (2.1 / L, -1.1)):
        losses = descend(quadratic, at, rate, 10)
        assert losses[-1] == pytest.approx(0.5 * L * factor**20, rel=1e-9)
        assert (losses[-1] > losses[0]) == (rate > 2 / L)
        stepped = moved(at, gradient(quadratic, at), -rate)
        assert (float(stepped["w"][0]) < 0) == (rate > 1 / L)


def test_the_network_heeds_the_same_limit_along_its_steepest_direction() -> None:
    """After some descent: below 1 / L every step lowers the loss; above 2 / L the first ones rise.

    A network is no quadratic, so that what rises is the distance along the steepest direction while
    it is small; it changes its sign between 1 / L and 2 / L, and grows beyond.
    """
    loss, at = loss_of(Scored())
    for _ in range(100):
        at = moved(at, gradient(loss, at), -0.3)
    limit, vector = largest_eigenvalue(loss, at)
    losses = descend(loss, at, 1 / limit, 10)
    assert losses == sorted(losses, reverse=True)
    aside = moved(at, vector, 1e-4)
    for multiple, factor in ((0.5, 0.5), (1.5, -0.5), (2.5, -1.5)):
        rate = multiple / limit
        one, other = (moved(p, gradient(loss, p), -rate) for p in (at, aside))
        apart = dot({name: other[name] - one[name] for name in one}, vector)
        assert apart / 1e-4 == pytest.approx(factor, abs=0.02)
    rising = descend(loss, at, 4 / limit, 20)
    assert max(rising) > rising[0]
