"""Activation checkpointing: what a block keeps between forward and backward."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

from torch import nn

from llm_train.context import Context, Part


class Recompute(Part, ABC):
    """Configuration of a policy. Subclasses are frozen, keyword-only dataclasses."""

    def problems(self, context: Context) -> Iterator[str]:
        """Blocks that the policy cannot be applied to: ``apply`` raises."""
        self.apply(context.build().blocks())
        yield from ()

    @abstractmethod
    def apply(self, blocks: Sequence[nn.Module]) -> None:
        """Changes the blocks in place so that they keep less and recompute more.

        Must run before compilation and before sharding, and must leave parameter names unchanged.
        """
