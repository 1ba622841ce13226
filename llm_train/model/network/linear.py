"""Linear layers whose weight is cast once per optimizer step instead of once per forward.

Under autocast a float32 weight is cast each time its layer runs: for every micro-batch, and again
in every recomputation. Here a module may hold a low-precision copy of its weight beside it. The
product reads the copy, the gradient goes to the float32 weight, and whoever changes the weight
refreshes the copy (``ShadowWeights.refresh``). Without a copy all is as in ``nn.Linear``: strategies that
cast while gathering, and precisions that cast nothing, need none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _ThroughShadow(torch.autograd.Function):
    """(weight, copy) -> copy, differentiable with respect to the weight."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, copy: Tensor) -> Tensor:
        ctx.dtype = weight.dtype
        return copy.view_as(copy)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.to(ctx.dtype), None


def through_shadow(weight: Tensor, copy: Tensor | None) -> Tensor:
    """The tensor to multiply by: ``copy`` where there is one, else ``weight`` itself."""
    if copy is None:
        return weight
    product: Tensor = _ThroughShadow.apply(weight, copy)  # type: ignore[no-untyped-call]
    return product


class HasShadow:
    """Mixed into modules whose ``weight`` is multiplied by, in the dtype of ``shadow``."""

    shadow: Tensor | None = None
    """A plain attribute, not a buffer: no state dict, no broadcast and no cast may touch it."""


class Linear(HasShadow, nn.Linear):
    """``nn.Linear`` that multiplies by ``shadow`` where it is set."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return F.linear(x, through_shadow(self.weight, self.shadow), self.bias)


class ShadowWeights:
    """Low-precision copies of every weight in ``network`` that has a place for one.

    Costs ``2`` bytes a parameter for bfloat16, which autocast holds from forward to backward too.

    Args:
        network: materialised; every ``HasShadow`` in it gets one.
        dtype: of the copies.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        self._weights: list[Tensor] = []
        self._copies: list[Tensor] = []
        for module in network.modules():
            if not isinstance(module, HasShadow):
                continue
            weight = module.weight
            assert isinstance(weight, Tensor)
            copy = torch.empty_like(weight, dtype=dtype, requires_grad=False)
            module.shadow = copy
            self._weights.append(weight)
            self._copies.append(copy)
        self.refresh()

    def __len__(self) -> int:
        return len(self._copies)

    @torch.no_grad()
    def refresh(self) -> None:
        """Casts all weights again; to be called whenever they have changed."""
        torch._foreach_copy_(self._copies, self._weights)
