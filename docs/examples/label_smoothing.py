"""A loss: cross-entropy against targets that are a little uncertain.

What is unusual: only ``objective`` is smoothed. ``nats`` stays the plain cross-entropy, so that
``train/loss`` remains comparable between runs with different regularisers.

Shapes: B batch, T positions, D width, V vocabulary without padding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from llm_train.errors import ConfigError
from llm_train.model.loss import Loss, LossSum, Projection

_IGNORE = -100


@dataclass(frozen=True, kw_only=True)
class LabelSmoothing(Loss):
    """``(1 - s) nats + s mean_v(-log p_v)``, summed over the valid targets.

    Attributes:
        smoothing: s, the probability that is spread over the whole vocabulary.
    """

    smoothing: float = 0.1

    def __post_init__(self) -> None:
        if not 0.0 <= self.smoothing < 1.0:
            raise ConfigError(
                f"loss.smoothing={self.smoothing} must lie in [0, 1); a usual value is 0.1"
            )

    def __call__(self, hidden: Tensor, projection: Projection, targets: Tensor) -> LossSum:
        """Scores ``targets`` (B, T) under the logits of ``hidden`` (B, T, D)."""
        logits = projection.logits(hidden)[..., : projection.vocab_size].flatten(0, -2)  # (B*T, V)
        flat = targets.flatten()  # (B*T,)
        valid = flat != _IGNORE
        nats = F.cross_entropy(logits, flat, ignore_index=_IGNORE, reduction="sum")
        spread = torch.where(valid, -logits.log_softmax(-1).mean(-1), 0.0).sum()
        objective = (1.0 - self.smoothing) * nats + self.smoothing * spread
        return LossSum(objective=objective, nats=nats.detach(), tokens=valid.sum())
