"""No recomputation: the null object, so that the setting is a class and never ``null``."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from llm_train.model.recompute.base import Recompute


@dataclass(frozen=True, kw_only=True)
class NoRecompute(Recompute):
    """Keeps every activation: the fastest, and the largest in memory."""

    def apply(self, blocks: Sequence[nn.Module]) -> None:
        """Leaves the blocks as they are."""

    def untouched(self, layers: int) -> int:
        """All blocks."""
        return layers
