"""Defines what a loss returns, and why it is a sum.

A mean cannot be averaged again: two micro-batches with different numbers of valid targets would
give different weights to their tokens. Losses therefore return sums, and only the task divides
them, by the loss normaliser.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from llm_train.context import Part
from llm_train.model.projection import Projection

__all__ = ["Loss", "LossSum", "Projection", "Scorer"]


class LossSum(NamedTuple):
    """Sums over the valid targets of one micro-batch.

    Attributes:
        objective: float32 scalar to differentiate, summed over targets (float64 where the network
            is): nats plus any regulariser, or another loss.
        nats: the same for cross-entropy alone, summed over targets, detached.
        tokens: int64 scalar: the number of valid targets.
    """

    objective: Tensor
    nats: Tensor
    tokens: Tensor


Scorer = Callable[..., LossSum]
"""Maps ``(hidden, projection, targets)`` to sums: a loss, or a faster form of one."""


class Loss(Part, ABC):
    """The configuration of a loss. Subclasses are frozen, keyword-only dataclasses."""

    @property
    def ignore_index(self) -> int:
        """Targets with this value do not count. A subclass may turn it into a field."""
        return -100

    @abstractmethod
    def __call__(self, hidden: Tensor, projection: Projection, targets: Tensor) -> LossSum:
        """Scores ``targets`` (B, T) under the logits of ``hidden`` (B, T, D)."""

    def plain(self) -> Loss:
        """The same loss in a form that torch can differentiate twice, or itself if it is one."""
        return self

    def compiled(self) -> Scorer:
        """Returns the loss with its element-wise work compiled, or itself if that gains nothing."""
        return self
