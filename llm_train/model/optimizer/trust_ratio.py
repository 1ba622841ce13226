"""How far a layer may move: in proportion to its own size.

The norms are those of whole tensors. On a DTensor, ``vector_norm`` is reduced over its mesh, so
that every sharding takes the same step as one process; fragments of a flattened tensor have no such
norm.
Vectors (norms' weights, biases) are left alone, as usual: there is no layer in them to keep in
proportion, and a bias that begins at zero could never leave it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from llm_train.context import UpdateSize
from llm_train.model.optimizer.update_rule import UpdateRule
from llm_train.runtime.sharded import whole


@dataclass(frozen=True, kw_only=True)
class Layerwise(UpdateRule):
    """Base of optimizers with a trust ratio; needs whole matrices.

    Attributes:
        learning_rate: the peak, before batch scaling; the schedule multiplies it.
        weight_decay: of parameters with two or more dimensions.
    """

    needs_whole: ClassVar[bool] = True
    update_size: ClassVar[UpdateSize] = "layer"

    @staticmethod
    def trust_ratio(weight: Tensor, update: Tensor, weight_share: float = 0.0) -> Tensor | float:
        """``|W| / (|update| + weight_share |W|)``; 1 for vectors and where a norm is zero."""
        if weight.ndim < 2:
            return 1.0
        weight = weight.to(update.dtype)
        size, moved = (whole(torch.linalg.vector_norm(each)) for each in (weight, update))
        usable = (size > 0) & (moved > 0)
        return torch.where(usable, size / (moved + weight_share * size), 1.0)
