"""Derivatives of a loss with respect to all parameters at once: first, second, and their checks.

A loss is a function of named tensors, so that forward and reverse mode, once or one after the
other, are calls of ``torch.func``. Attention is computed by torch's plain kernel, the only one that
can be differentiated twice and in forward mode.

Hessian-vector products take a forward derivative of the gradient (Pearlmutter, "Fast exact
multiplication by the Hessian", Neural Computation 6, 1994): about four times the cost of a loss,
and no matrix.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

Point = dict[str, Tensor]
"""Tensors by name: a place in the space of parameters, or a direction in it."""

Loss = Callable[[Point], Tensor]
"""Maps a point to a scalar."""


def loss_of(module: nn.Module, *inputs: Any) -> tuple[Loss, Point]:
    """The scalar that ``module(*inputs)`` gives, as a function of its parameters; and they.

    Tied parameters are one, under their first name.
    """
    point = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}

    def loss(at: Point) -> Tensor:
        scalar: Tensor = torch.func.functional_call(module, at, inputs)
        return scalar

    return loss, point


def gradient(loss: Loss, at: Point) -> Point:
    """The derivative in every direction, by reverse mode."""
    with _twice_differentiable():
        found: Point = torch.func.grad(loss)(at)
    return found


def central_difference(loss: Loss, at: Point, along: Point, step: float = 1e-5) -> float:
    """``(f(w + h v) - f(w - h v)) / 2 h``, the derivative along v up to an error of order h^2.

    In float64 an h of 1e-5 leaves about ten digits; in float32 rounding leaves three at best.
    """
    with torch.no_grad():
        ahead, behind = (float(loss(moved(at, along, h))) for h in (step, -step))
    return (ahead - behind) / (2 * step)


def jvp(loss: Loss, at: Point, along: Point) -> Tensor:
    """The derivative along one direction, by forward mode."""
    with _twice_differentiable():
        found: Tensor = torch.func.jvp(loss, (at,), (along,))[1]
    return found


def hvp(loss: Loss, at: Point, along: Point) -> Point:
    """The Hessian times a direction."""
    with _twice_differentiable():
        found: Point = torch.func.jvp(torch.func.grad(loss), (at,), (along,))[1]
    return found


class Eigenpair(NamedTuple):
    """Of the Hessian.

    Attributes:
        value: the eigenvalue, a second derivative.
        vector: its direction, of norm 1.
    """

    value: float
    vector: Point


def largest_eigenvalue(
    loss: Loss, at: Point, *, iterations: int = 200, tolerance: float = 1e-6, seed: int = 0
) -> Eigenpair:
    """The largest eigenvalue of the Hessian by power iteration, which gradient descent must heed.

    Power iteration finds the eigenvalue of largest size. Where that is negative, the Hessian less
    that value has none below 0, and its largest is the one that is looked for.

    Args:
        loss: of the parameters.
        at: the point.
        iterations: Hessian-vector products, at most twice as many.
        tolerance: relative change of the value at which to stop.
        seed: of the direction to begin with.
    """
    found = _power(loss, at, 0.0, iterations, tolerance, seed)
    if found.value < 0:
        return _power(loss, at, found.value, iterations, tolerance, seed)
    return found


def descend(loss: Loss, at: Point, rate: float, steps: int) -> list[float]:
    """The losses of gradient descent, before each step and after the last.

    On a quadratic whose largest second derivative is L, a rate up to 1 / L makes every coordinate
    shrink without changing its sign, one between 1 / L and 2 / L lets the steepest oscillate, and
    one above 2 / L lets it grow: each step multiplies it by 1 - rate L.
    """
    losses = [float(loss(at))]
    for _ in range(steps):
        at = moved(at, gradient(loss, at), -rate)
        losses.append(float(loss(at)))
    return losses


def dot(one: Point, other: Point) -> float:
    """The inner product of two directions."""
    return float(sum((tensor * other[name]).sum() for name, tensor in one.items()))


def moved(at: Point, along: Point, distance: float) -> Point:
    """``at + distance along``."""
    return {name: tensor + distance * along[name] for name, tensor in at.items()}


def random_direction(like: Point, seed: int) -> Point:
    """A direction of norm 1, uniform over the sphere."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {
        name: torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor)
        for name, tensor in like.items()
    }
    return _normalised(drawn)


def _normalised(direction: Point) -> Point:
    norm = math.sqrt(dot(direction, direction))
    return {name: tensor / norm for name, tensor in direction.items()}


def _power(
    loss: Loss, at: Point, shift: float, iterations: int, tolerance: float, seed: int
) -> Eigenpair:
    """Of the Hessian less ``shift`` times the identity; gives the Hessian's own value."""
    vector, value = random_direction(at, seed), math.inf
    for _ in range(iterations):
        product = moved(hvp(loss, at, vector), vector, -shift)
        before, value = value, dot(vector, product)
        if not dot(product, product) or abs(value - before) <= tolerance * abs(value):
            break
        vector = _normalised(product)
    return Eigenpair(value + shift, vector)


@contextmanager
def _twice_differentiable() -> Iterator[None]:
    with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
        # torch's own rules of forward mode are made with what torch advises against.
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=DeprecationWarning)
        yield
