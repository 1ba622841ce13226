"""What a loss returns, and why it is a sum.

A mean cannot be averaged again: two micro-batches with different numbers of valid targets would
weigh their tokens differently. Losses therefore return sums, and one place (the task) divides.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor

from llm_train.context import Part


class Projection(Protocol):
    """The part of a network's output projection that a loss may use."""

    @property
    def weight(self) -> Tensor:
        """(V, D), V padded."""

    @property
    def vocab_size(self) -> int:
        """Number of real ids; columns from here on are padding and get no probability."""

    @property
    def soft_cap(self) -> float:
        """``c`` in ``c * tanh(logits / c)``; 0 means none."""

    @property
    def shadow(self) -> Tensor | None:
        """(V, D) the weight already in the dtype of products, or None."""

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V) in float32; padding columns are -inf."""


class LossSum(NamedTuple):
    """Sums over the valid targets of one micro-batch.

    Attributes:
        objective: scalar float32 to differentiate: nats plus any regulariser, summed over tokens.
        nats: scalar float32, cross-entropy alone, summed over tokens, detached.
        tokens: scalar int64, number of valid targets.
    """

    objective: Tensor
    nats: Tensor
    tokens: Tensor


Scorer = Callable[..., LossSum]
"""``(hidden, projection, targets)`` to sums: a loss, or a faster form of one."""


class Loss(Part, ABC):
    """Configuration of a loss. Subclasses are frozen, keyword-only dataclasses."""

    ignore_index: int = -100
    """Targets with this value do not count. A subclass may make it a field."""

    @abstractmethod
    def __call__(self, hidden: Tensor, projection: Projection, targets: Tensor) -> LossSum:
        """Scores ``targets`` (B, T) under the logits of ``hidden`` (B, T, D)."""

    def compiled(self) -> Scorer:
        """The same with its element-wise work compiled; itself where nothing is gained by it."""
        return self


Readout = Callable[[Tensor, Projection], LossSum]
