"""Keys and values of the positions already seen, so that the next token costs one position of work.

The memory is taken once, at full capacity, when the first keys arrive: only then are their dtype
(which autocast may have changed), device and local number of heads known. Nothing grows afterwards.

Shapes: B batch, K key/value heads, S positions stored, T new positions, hd head_dim.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from llm_train.model.network.base import LanguageModel, R, Readout


class LayerCache:
    """Keys and values of one block.

    Attributes:
        capacity: positions it can hold.
        length: positions it holds; the position of the next token.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self._stored: Tensor | None = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores (B, K, T, hd) twice and returns everything so far, (B, K, S, hd) twice."""
        batch, heads, new, head_dim = keys.shape
        end = self.length + new
        assert end <= self.capacity, f"{end} positions in a cache of {self.capacity}"
        if self._stored is None:
            self._stored = keys.new_empty(2, batch, heads, self.capacity, head_dim)
        self._stored[0, :, :, self.length : end] = keys
        self._stored[1, :, :, self.length : end] = values
        self.length = end
        return self._stored[0, :, :, :end], self._stored[1, :, :, :end]


Cache = list[LayerCache]
"""One for each block of a network; between two forwards all of them have one length."""


def causal_mask(new: int, total: int, device: torch.device) -> Tensor:
    """(new, total), true where the i-th of the last ``new`` positions may look.

    >>> causal_mask(2, 4, torch.device("cpu")).int().tolist()
    [[1, 1, 1, 0], [1, 1, 1, 1]]
    """
    return torch.ones(new, total, dtype=torch.bool, device=device).tril(total - new)


class CachedLanguageModel(LanguageModel):
    """A language model that can continue from a cache.

    Attributes:
        max_positions: positions that the cache and the new tokens may take together.
    """

    max_positions: int

    @abstractmethod
    def new_cache(self) -> Cache:
        """An empty cache of ``max_positions`` positions; one cache serves one sequence batch."""

    @abstractmethod
    def forward(self, tokens: Tensor, readout: Readout[R], cache: Cache | None = None) -> R:
        """As ``LanguageModel.forward``; ``tokens`` follow those in ``cache`` and join them."""
