"""The gradient noise scale from two batch sizes, and what it says about the batch.

With the true gradient G and the covariance C of one token's gradient, the gradient of a batch of B
tokens has E |G_B|^2 = |G|^2 + tr C / B. Two sizes give both unknowns (McCandlish et al.,
arXiv:1812.06162, appendix A.1), and their ratio is the simple noise scale, the batch beyond which
more tokens buy few steps. That is exact for SGD on a quadratic whose Hessian is a multiple of the
identity; for other optimizers and losses it is right to a small factor (section 2.2 there).
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from torch import Tensor

Number = TypeVar("Number", float, Tensor)
_BLOCKS = 20


def estimates(
    small: Number, big: Number, small_batch: float, big_batch: float
) -> tuple[Number, Number]:
    """Unbiased |G|^2 and tr C from the squared norms of the gradients of two batches.

    Args:
        small: squared norm of the gradient of the small batch, or a mean of several.
        big: squared norm of the gradient of the big one.
        small_batch: tokens of the small batch.
        big_batch: tokens of the big one.

    >>> estimates(3.0, 1.5, 1, 4)  # 1 + 2 / 1 and 1 + 2 / 4
    (1.0, 2.0)
    """
    gradient = (big * big_batch - small * small_batch) / (big_batch - small_batch)
    return gradient, (small - big) / (1 / small_batch - 1 / big_batch)


class Measured(NamedTuple):
    """A ratio of two noisy means.

    Attributes:
        tokens: tr C / |G|^2; negative or infinite where noise hides the gradient.
        error: standard error of ``tokens``.
    """

    tokens: float
    error: float


def noise_scale(gradients: Sequence[float], traces: Sequence[float]) -> Measured:
    """The ratio of the means of both estimates, with its error by the jackknife.

    The mean of the ratios would be biased, and each alone may be negative. Neighbours are left out
    together, up to 20 blocks of them, since they are correlated.

    Args:
        gradients: estimates of |G|^2, in the order of time.
        traces: of tr C.
    """
    pairs = np.array([gradients, traces], dtype=np.float64)
    blocks = min(_BLOCKS, pairs.shape[1])
    parts = np.array([part.sum(axis=1) for part in np.array_split(pairs, blocks, axis=1)])
    with np.errstate(divide="ignore", invalid="ignore"):
        whole = parts.sum(axis=0)
        ratio = whole[1] / whole[0]
        rest = whole - parts
        without = rest[:, 1] / rest[:, 0]
        spread = (blocks - 1) / blocks * ((without - without.mean()) ** 2).sum()
    return Measured(float(ratio), float(np.sqrt(spread)))


def relative_cost(batch: float, other: float, noise: float) -> tuple[float, float]:
    """Steps and tokens that ``other`` needs to the same loss, of those that ``batch`` needs.

    A step with batch B makes 1 / (1 + noise / B) of the progress of one without noise (McCandlish
    et al., equations 2.7 and 2.11).

    >>> relative_cost(100, 400, noise=100)
    (0.625, 2.5)
    """
    steps = (1 + noise / other) / (1 + noise / batch)
    return steps, steps * other / batch
