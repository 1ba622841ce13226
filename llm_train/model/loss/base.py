"""Defines what a loss returns, and why it is a sum.

A mean cannot be averaged again: two micro-batches with different numbers of valid targets would
give different weights to their tokens. Losses therefore return sums, and only the task divides
them, by the loss normaliser.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor

from llm_train.context import Part


class Projection(Protocol):
    """The part of a network's output projection (its head) that a loss may use."""

    @property
    def weight(self) -> Tensor:
        """The weight (V, D), where V includes the padding of the vocabulary."""

    @property
    def vocab_size(self) -> int:
        """The number of real ids; later columns are padding and get no probability."""

    @property
    def soft_cap(self) -> float:
        """The constant ``c`` in ``c * tanh(logits / c)``; 0 means that there is no cap."""

    @property
    def shadow(self) -> Tensor | None:
        """(V, D) the weight already in the dtype of products, or None."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Maps (..., D) to logits (..., V) in float32; padding columns are -inf."""


class LossSum(NamedTuple):
    """Sums over the valid targets of one micro-batch.

    Attributes:
        objective: float32 scalar to differentiate: nats plus any regulariser, summed over targets.
        nats: float32 scalar: cross-entropy alone, summed over targets, detached.
        tokens: int64 scalar: the number of valid targets.
    """

    objective: Tensor
    nats: Tensor
    tokens: Tensor


Scorer = Callable[..., LossSum]
"""Maps ``(hidden, projection, targets)`` to sums: a loss, or a faster form of one."""


class Loss(Part, ABC):
    """The configuration of a loss. Subclasses are frozen, keyword-only dataclasses."""

    ignore_index: int = -100
    """Targets with this value do not count. A subclass may turn it into a field."""

    @abstractmethod
    def __call__(self, hidden: Tensor, projection: Projection, targets: Tensor) -> LossSum:
        """Scores ``targets`` (B, T) under the logits of ``hidden`` (B, T, D)."""

    def compiled(self) -> Scorer:
        """Returns the loss with its element-wise work compiled, or itself if that gains nothing."""
        return self


Readout = Callable[[Tensor, Projection], LossSum]
