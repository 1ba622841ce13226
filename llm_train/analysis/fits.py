"""Small fits to losses: the best of a number from a few tries, a power law, a range of rates."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class PowerLaw(NamedTuple):
    """``y = factor x^exponent``.

    Attributes:
        factor: the value at x = 1.
        exponent: of x.
        error: standard error of the exponent; infinite for fewer than three points.
    """

    factor: float
    exponent: float
    error: float

    def __call__(self, x: float) -> float:
        """The value at ``x``."""
        return float(self.factor * x**self.exponent)


def power_law(x: Sequence[float], y: Sequence[float]) -> PowerLaw:
    """Least squares on logarithms.

    >>> found = power_law([1, 4, 16], [0.1, 0.2, 0.4])
    >>> round(found.exponent, 6), round(found(64), 6)
    (0.5, 0.8)
    """
    logs = np.log(x), np.log(y)
    exponent, start = np.polyfit(*logs, 1)
    rest = logs[1] - start - exponent * logs[0]
    spread = ((logs[0] - logs[0].mean()) ** 2).sum() * max(len(x) - 2, 0)
    error = np.sqrt((rest**2).sum() / spread) if spread else np.inf
    return PowerLaw(float(np.exp(start)), float(exponent), float(error))


def best_rate(rates: Sequence[float], losses: Sequence[float]) -> float | None:
    """Where a parabola through the lowest loss and its neighbours is lowest, in log(rate).

    Args:
        rates: that were tried.
        losses: what they gave; infinite ones are neighbours, but the parabola avoids them.

    Returns:
        None where the lowest lies at the edge, so that the best may lie outside.

    >>> best_rate([0.01, 0.1, 1.0], [2.0, 1.0, 2.0])
    0.1
    >>> best_rate([0.01, 0.1, 1.0], [1.0, 1.1, 2.0])
    """
    order = np.argsort(rates)
    x, y = np.log(np.asarray(rates, float)[order]), np.asarray(losses, float)[order]
    lowest = int(np.argmin(y))
    if not 0 < lowest < len(y) - 1:
        return None
    around = slice(lowest - 1, lowest + 2)
    if not np.isfinite(y[around]).all():
        return float(np.exp(x[lowest]))
    curvature, slope, _ = np.polyfit(x[around] - x[lowest], y[around], 2)
    return float(f"{np.exp(x[lowest] - slope / (2 * curvature)):.6g}")


class Range(NamedTuple):
    """What a run whose rate rises shows.

    Attributes:
        steepest: the rate at which the smoothed loss falls fastest.
        highest: the rate from which it rises again; the last rate where it never does.
    """

    steepest: float
    highest: float


def usable_range(rates: Sequence[float], losses: Sequence[float], smoothing: float = 0.9) -> Range:
    """Reads a learning-rate range test (Smith, arXiv:1506.01186).

    The loss is smoothed by a mean with exponential weights; its slope is over log(rate).
    """
    smooth, mean = [], 0.0
    for number, loss in enumerate(losses, start=1):
        mean = smoothing * mean + (1 - smoothing) * loss
        smooth.append(mean / (1 - smoothing**number))
    lowest = int(np.argmin(smooth))
    falling = smooth[: lowest + 1]
    if len(falling) < 2:
        return Range(rates[0], rates[lowest])
    slopes = np.gradient(falling, np.log(rates[: lowest + 1]))
    return Range(rates[int(np.argmin(slopes))], rates[lowest])
