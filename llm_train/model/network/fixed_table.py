"""Numbers that follow from the configuration, in a table that no cast can damage.

In bfloat16 the positions 256 and 257 are the same number, so a table that follows
``model.bfloat16()`` destroys long contexts without an error. This module rebuilds its table in
float32 (in float64 where the network is float64), from float64 values computed on the CPU, each
time torch moves, casts or materialises it (all of these pass ``_apply``), and keeps it out of the
state dict.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Values = NDArray[np.float64]


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
