"""Rotary positions (arXiv:2104.09864) from a float32 table that no cast can damage.

In bfloat16 the positions 256 and 257 are the same number, so a table that follows
``model.bfloat16()`` destroys long contexts without an error. This module rebuilds its table in
float32, from float64 angles computed on the CPU, each time torch moves, casts or materialises it
(all of these pass ``_apply``), and keeps it out of the state dict: it is a function of the
configuration.

One module serves every block. It is handed to a block as an argument, not as tensors: fully_shard's
mixed precision casts floating tensors among a module's arguments, and does not look into a module.

Pairs are (i, i + head_dim / 2), as in GPT-NeoX and in Llama weights on the Hugging Face hub.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from llm_train.model.network.norm import at_least_float32


class Rotary(nn.Module):
    """Turns pairs of features by an angle proportional to the position.

    Args:
        positions: rows of the table, the longest sequence plus cache it serves.
        head_dim: features of one head, even.
        base: pair i turns by ``base ** (-2 i / head_dim)`` radians per position.
    """

    table: Tensor

    def __init__(self, positions: int, head_dim: int, *, base: float) -> None:
        super().__init__()
        self.positions, self.head_dim, self.base = positions, head_dim, base
        device = torch.get_default_device()
        self.register_buffer("table", self._build(device), persistent=False)

    def _build(self, device: torch.device) -> Tensor:
        """(2, positions, head_dim / 2) in float32: cosines, then sines."""
        if device.type == "meta":
            return torch.empty(2, self.positions, self.head_dim // 2, device=device)
        # numpy, because torch's functions follow a default device and a default dtype.
        even = np.arange(0, self.head_dim, 2, dtype=np.float64)
        angle = np.outer(np.arange(self.positions), self.base ** (-even / self.head_dim))
        table = np.stack((np.cos(angle), np.sin(angle))).astype(np.float32)
        return torch.from_numpy(table).to(device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.table = self._build(self.table.device)
        return self

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """Rotates (B, T, H, head_dim), whose first position is ``start``; computed in float32."""
        cos, sin = self.table[:, start : start + x.shape[1], None, :]  # each (T, 1, head_dim / 2)
        first, second = at_least_float32(x).chunk(2, dim=-1)
        turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
        return turned.to(x.dtype)
