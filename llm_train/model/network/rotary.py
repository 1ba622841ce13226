"""Rotary positions (arXiv:2104.09864): pairs of features turn by an angle that grows with position.

One module serves every block. It is handed to a block as an argument, not as tensors: fully_shard's
mixed precision casts floating tensors among a module's arguments, and does not look into a module.

Pairs are (i, i + head_dim / 2), as in GPT-NeoX and in Llama weights on the Hugging Face hub.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from llm_train.model.network.architecture import Architecture
from llm_train.model.network.fixed_table import FixedTable, Values
from llm_train.model.network.rotary_scaling.base import NoScaling, RotaryScaling
from llm_train.runtime.autocast import at_least_float32

_PLAIN = NoScaling()


class Rotary(FixedTable):
    """Turns pairs of features by an angle proportional to the position.

    Args:
        positions: rows of the table, the longest sequence plus cache it serves.
        head_dim: features of one head, even.
        base: pair i turns by ``base ** (-2 i / head_dim)`` radians per position.
        scaling: changes these frequencies for contexts longer than a network was trained on.
    """

    def __init__(
        self, positions: int, head_dim: int, *, base: float, scaling: RotaryScaling = _PLAIN
    ) -> None:
        self.positions, self.head_dim, self.base, self.scaling = positions, head_dim, base, scaling
        super().__init__(2, positions, head_dim // 2)

    def values(self) -> Values:
        """(2, positions, head_dim / 2): cosines, then sines."""
        frequencies = self.scaling.frequencies(self.base, self.head_dim)
        angle = np.outer(np.arange(self.positions), frequencies)
        # The factor acts on queries and on keys, so that scores are multiplied by its square.
        return np.stack((np.cos(angle), np.sin(angle))) * self.scaling.attention_factor

    def forward(self, x: Tensor, start: int = 0, positions: Tensor | None = None) -> Tensor:
        """Rotates (B, T, H, head_dim) from position ``start`` on, or to ``positions`` (B, T).

        It computes in float32 at least.
        """
        rows = slice(start, start + x.shape[1]) if positions is None else positions
        cos, sin = self.table[:, rows].unsqueeze(-2)  # each (T, 1, head_dim / 2) or (B, T, ...)
        first, second = at_least_float32(x).chunk(2, dim=-1)
        turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
        return turned.to(x.dtype)


def make_rotary(config: Architecture) -> Rotary:
    """The table that a configuration asks for."""
    return Rotary(
        config.max_sequence,
        config.head_dim,
        base=config.rotary_base,
        scaling=config.rotary_scaling,
    )
