"""Where a network and a loss meet: the output projection, and the loss as what reads it.

Neither family imports the other. A head hands hidden states and a ``Projection`` to a ``Readout``,
which is the loss in training, and takes logits in generation.

Shapes: D width, V vocabulary (padded).
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from llm_train.runtime.autocast import at_least_float32

R = TypeVar("R")


class _ThroughShadow(torch.autograd.Function):
    """(float32 weight, shadow) -> shadow, differentiable with respect to the weight."""

    @staticmethod
    def forward(ctx: object, weight: Tensor, shadow: Tensor) -> Tensor:
        return shadow.view_as(shadow)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.float(), None  # of a master weight in float32


def through_shadow(weight: Tensor, shadow: Tensor | None) -> Tensor:
    """The tensor to multiply by: ``shadow`` where there is one, else ``weight`` itself."""
    if shadow is None:
        return weight
    product: Tensor = _ThroughShadow.apply(weight, shadow)  # type: ignore[no-untyped-call]
    return product


class Projection(NamedTuple):
    """How hidden states become logits, as data, so that a loss may do it in pieces.

    Attributes:
        weight: (V, D), V padded.
        vocab_size: number of real token ids; columns from here on are padding and get no
            probability.
        soft_cap: ``c`` in ``c * tanh(logits / c)`` (Gemma 2, arXiv:2408.00118, eq. 1); 0 means
            none.
        shadow: (V, D) the weight in the dtype of products, where it is kept (``network.linear``).
    """

    weight: Tensor
    vocab_size: int
    soft_cap: float
    shadow: Tensor | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V) in float32, or float64; padding columns are -inf."""
        matrix = through_shadow(self.weight, self.shadow)
        return finish(F.linear(hidden, matrix), self.vocab_size, self.soft_cap)


def finish(products: Tensor, vocab_size: int, soft_cap: float) -> Tensor:
    """(..., V) products of hidden states and weight -> logits, as ``Projection`` describes them."""
    out = at_least_float32(products)
    if soft_cap > 0.0:
        out = soft_cap * torch.tanh(out / soft_cap)
    if vocab_size < out.shape[-1]:
        padding = torch.arange(out.shape[-1], device=out.device) >= vocab_size
        out = out.masked_fill(padding, float("-inf"))
    return out


Readout = Callable[[Tensor, Projection], R]
