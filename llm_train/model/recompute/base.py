"""Activation checkpointing: what a block keeps between forward and backward, and how it is made to.

What is unusual: the block is not wrapped. Its ``forward`` is replaced on the instance, so that
names of parameters, the type of the block and hooks that others put on it (fully_shard, DeepSpeed)
stay as they are, and ``block.compile()`` afterwards compiles forward and recomputation together.
The replacement is a bound method, not a closure over the block: ``copy.deepcopy`` of a bound method
binds it to the copy, where a closure would silently run the original's weights.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from types import MethodType
from typing import Any, Self

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from llm_train.context import Context, Part


class Recompute(Part, ABC):
    """Configuration of a policy. Subclasses are frozen, keyword-only dataclasses.

    Attributes:
        whole_blocks: a block that recomputes keeps nothing but what it is given.
    """

    whole_blocks = False

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


ContextPair = tuple[AbstractContextManager[object], AbstractContextManager[object]]


def checkpoint_block(block: nn.Module, context_fn: Callable[[], ContextPair] | None = None) -> None:
    """Replaces ``block.forward`` by one that recomputes in backward.

    Only when training with gradients: evaluation, generation with a key-value cache and anything
    under ``no_grad`` call the original directly. Random numbers (dropout) are replayed in the
    recomputation.

    Args:
        block: changed in place.
        context_fn: contexts of forward and recomputation, as ``torch.utils.checkpoint`` takes them:
            a ``functools.partial``, the only kind that torch.compile understands. None is none.
    """
    assert "forward" not in vars(block), "this block already has a forward of its own"
    # Naming torch's own default here would stop torch.compile.
    contexts: dict[str, Any] = {} if context_fn is None else {"context_fn": context_fn}

    def forward(self: nn.Module, *args: object, **kwargs: Any) -> object:
        original = type(self).forward
        if not (self.training and torch.is_grad_enabled()):
            return original(self, *args, **kwargs)
        return checkpoint(
            original,
            self,
            *args,
            use_reentrant=False,
            preserve_rng_state=True,
            **contexts,
            **kwargs,
        )

    block.forward = MethodType(forward, block)
