"""How a network tells positions apart: tables of numbers that no cast can damage, one a method.

In bfloat16 the positions 256 and 257 are the same number, so a table that follows
``model.bfloat16()`` destroys long contexts without an error. A ``FixedTable`` is rebuilt in float32
(in float64 where the network is float64), from float64 values computed on the CPU, each time torch
moves, casts or materialises it (all of these pass ``_apply``), and is kept out of the state dict.

Rotary positions (arXiv:2104.09864) turn pairs of features by an angle that grows with position.
Pairs are (i, i + head_dim / 2), as in GPT-NeoX and in Llama weights on the Hugging Face hub. One
module serves every block. It is handed to a block as an argument, not as tensors: fully_shard's
mixed precision casts floating tensors among a module's arguments, and does not look into a module.

Sinusoidal positions (Vaswani et al., arXiv:1706.03762, section 3.5) are added to embeddings. They
have an amplitude of 1, which drowns embeddings of the usual 0.02: the paper multiplies embeddings
by the root of the width, which ``embedding_scale`` does here.

ALiBi (Press et al., arXiv:2108.12409): attention loses a little for every position of distance. The
bias is a mask of numbers, computed once a forward and shared by all blocks; it takes H T^2
elements. FlashAttention's kernels accept no mask, and refuse.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from llm_train.model.network.rotary_scaling.base import (
    NoScaling,
    RotaryScaling,
    Values,
    plain_frequencies,
)
from llm_train.runtime.autocast import at_least_float32


class FixedTable(nn.Module, ABC):
    """Holds ``table``, a buffer.

    Args:
        *shape: of the table; what ``values`` reads must be set before it is given.
    """

    table: Tensor

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape
        table = self._build(torch.get_default_device(), torch.float32)
        self.register_buffer("table", table, persistent=False)

    @abstractmethod
    def values(self) -> Values:
        """The table, computed in numpy: torch's functions follow a default device and dtype."""

    def _build(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        dtype = dtype if dtype == torch.float64 else torch.float32
        if device.type == "meta":
            return torch.empty(self.shape, device=device, dtype=dtype)
        narrow = np.float64 if dtype == torch.float64 else np.float32
        return torch.from_numpy(self.values().astype(narrow)).to(device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.table = self._build(self.table.device, self.table.dtype)
        return self


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
