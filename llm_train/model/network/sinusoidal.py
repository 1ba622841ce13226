"""Sinusoidal positions (Vaswani et al., arXiv:1706.03762, section 3.5), added to embeddings.

They have an amplitude of 1, which drowns embeddings of the usual 0.02: the paper multiplies
embeddings by the root of the width, which ``embedding_scale`` does here.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from llm_train.model.network.fixed_table import FixedTable, Values
from llm_train.model.network.rotary_scaling.base import plain_frequencies

BASE = 10_000.0


class Sinusoidal(FixedTable):
    """Feature 2 i is ``sin(t / 10000 ** (2 i / D))``, and feature 2 i + 1 the cosine of the same.

    Args:
        positions: rows of the table.
        width: D.
    """

    def __init__(self, positions: int, width: int) -> None:
        super().__init__(positions, width)

    def values(self) -> Values:
        """(positions, D)."""
        positions, width = self.shape
        angle = np.outer(np.arange(positions), plain_frequencies(BASE, width))
        pairs = np.stack((np.sin(angle), np.cos(angle)), axis=-1)  # (positions, D / 2, 2)
        return pairs.reshape(positions, -1)[:, :width]

    def forward(self, positions: slice | Tensor) -> Tensor:
        """(T, D) for T positions, (B, T, D) for (B, T)."""
        return self.table[positions]
