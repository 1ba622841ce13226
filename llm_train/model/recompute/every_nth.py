"""Recomputation of some blocks whole: memory for time in steps of one block."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from torch import nn

from llm_train.errors import ConfigError, check_at_least
from llm_train.model.recompute.base import Recompute, checkpoint_block


@dataclass(frozen=True, kw_only=True)
class EveryNth(Recompute):
    """Recomputes blocks 0, n, 2n, ...; the others keep everything.

    ``n=1`` is ``EveryBlock``; the larger ``n``, the more is kept.

    Attributes:
        n: distance between two blocks that recompute; at most the number of blocks.
    """

    whole_blocks = True

    n: int

    def __post_init__(self) -> None:
        hint = "; write 2 for every second block, or use NoRecompute"
        check_at_least(self, 1, "n", prefix="recompute.", hint=hint)

    def apply(self, blocks: Sequence[nn.Module]) -> None:
        """Makes blocks 0, n, 2n, ... recompute.

        Raises:
            ConfigError: there are fewer than ``n`` blocks.
        """
        if self.n > len(blocks):
            raise ConfigError(
                f"recompute.n={self.n} is more than the network's {len(blocks)} blocks; "
                f"write a number from 1 to {len(blocks)}, or use NoRecompute"
            )
        for block in blocks[:: self.n]:
            checkpoint_block(block)

    # --- cost -------------------------------------------------------------------------------------

    @classmethod
    def candidates(cls, layers: int) -> Iterator[Self]:
        """Every second block, where there is a second one."""
        if layers > 1:
            yield cls(n=2)

    @property
    def period(self) -> int:
        """One block in ``n`` recomputes."""
        return self.n

    def untouched(self, layers: int) -> int:
        """All but blocks 0, n, 2n ...

        >>> EveryNth(n=2).untouched(5)
        2
        """
        return layers - math.ceil(layers / self.n)

    def __str__(self) -> str:
        return f"{type(self).__name__} {self.n}"
