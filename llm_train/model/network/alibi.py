"""ALiBi (Press et al., arXiv:2108.12409): attention loses a little for every position of distance.

The bias is a mask of numbers, computed once a forward and shared by all blocks; it takes H T^2
elements. FlashAttention's kernels accept no mask, and refuse.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from llm_train.model.network.fixed_table import FixedTable, Values


def slopes(heads: int) -> list[float]:
    """A slope for each head: a geometric sequence from 2 ** (-8 / H) to 2 ** -8.

    For a number of heads that is no power of two, the authors' code takes those of the power below,
    and fills up with every second one of the power above.

    >>> slopes(4), slopes(3)
    ([0.25, 0.0625, 0.015625, 0.00390625], [0.0625, 0.00390625, 0.25])
    """
    below = 2 ** math.floor(math.log2(heads))
    first = [2.0 ** (-8.0 * (i + 1) / below) for i in range(below)]
    above = [2.0 ** (-4.0 * (i + 1) / below) for i in range(0, 2 * below, 2)]
    return (first + above)[:heads]


class Alibi(FixedTable):
    """Scores of a query at i and a key at j <= i change by ``-slope (i - j)``, head by head.

    Args:
        heads: H.
    """

    def __init__(self, heads: int) -> None:
        super().__init__(heads)

    def values(self) -> Values:
        """(H,)."""
        return np.array(slopes(*self.shape))

    def forward(self, start: int, end: int, seen: Tensor | None = None) -> Tensor:
        """(H, end - start, end): the bias of queries from ``start`` on; -inf where keys follow.

        With ``seen`` (B, 1, T, S), (B, H, T, S): -inf where that is false.
        """
        keys = torch.arange(end, device=self.table.device)
        distance = keys[start:, None] - keys  # (T, S)
        bias = -self.table[:, None, None] * distance
        return bias.masked_fill(distance < 0 if seen is None else ~seen, float("-inf"))
