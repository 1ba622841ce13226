"""The module that owns the output weight, and inside which a loss runs.

Sharding strategies gather a parameter when the forward of its module is entered and release it
afterwards. Whatever needs the weight is therefore called from here, as a readout.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llm_train.network.base import Projection, R, Readout
from llm_train.network.linear import WithCopy


class Head(WithCopy, nn.Module):
    """Output projection without a bias.

    Args:
        width: D.
        rows: V, the padded vocabulary.
        vocab_size: real token ids, at most V.
        soft_cap: see ``Projection``.
    """

    def __init__(self, width: int, rows: int, *, vocab_size: int, soft_cap: float) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.soft_cap = soft_cap
        self.weight = nn.Parameter(torch.zeros(rows, width))

    def forward(self, hidden: Tensor, readout: Readout[R]) -> R:
        """Calls ``readout`` with (B, T, D) and the projection."""
        return readout(
            hidden, Projection(self.weight, self.vocab_size, self.soft_cap, self.weight_copy)
        )
