"""Activation checkpointing: what a block keeps between forward and backward."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import nn


class Recompute(ABC):
    """Configuration of a policy. Subclasses are frozen, keyword-only dataclasses."""

    @abstractmethod
    def apply(self, blocks: Sequence[nn.Module]) -> None:
        """Changes the blocks in place so that they keep less and recompute more.

        Must run before compilation and before sharding, and must leave parameter names unchanged.
        """
