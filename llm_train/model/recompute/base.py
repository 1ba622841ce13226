"""Activation checkpointing: what a block keeps between forward and backward."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar, Self

from torch import nn

from llm_train.context import Context, Part


class Recompute(Part, ABC):
    """Configuration of a policy. Subclasses are frozen, keyword-only dataclasses.

    Attributes:
        whole_blocks: a block that recomputes keeps nothing but what it is given.
    """

    whole_blocks: ClassVar[bool] = False

    def problems(self, context: Context) -> Iterator[str]:
        """Blocks that the policy cannot be applied to: ``apply`` raises."""
        self.apply(context.build().blocks())
        yield from ()

    @abstractmethod
    def apply(self, blocks: Sequence[nn.Module]) -> None:
        """Changes the blocks in place so that they keep less and recompute more.

        Must run before compilation and before sharding, and must leave parameter names unchanged.
        """

    # --- cost: what plan asks ---------------------------------------------------------------------

    @classmethod
    def candidates(cls, layers: int) -> Iterator[Self]:
        """What a search for the fastest configuration tries on so many blocks."""
        yield cls()

    @property
    def period(self) -> int:
        """Blocks after which the treatment of blocks repeats."""
        return 1

    def untouched(self, layers: int) -> int:
        """Blocks that stay as they are, of so many."""
        return 0

    def __str__(self) -> str:
        return type(self).__name__
