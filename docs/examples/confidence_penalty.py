"""A loss: cross-entropy with a penalty on being sure (Pereyra et al., arXiv:1701.06548).

What is unusual: only ``objective`` has the penalty. ``nats`` stays the plain cross-entropy, so that
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
class ConfidencePenalty(Loss):
    """``nats - weight * entropy(p)``, summed over the valid targets.

    Attributes:
        weight: of the entropy of each prediction.
    """

    weight: float = 0.1

    def __post_init__(self) -> None:
        if not 0.0 <= self.weight < 1.0:
            raise ConfigError(f"loss.weight={self.weight} must lie in [0, 1); a usual value is 0.1")

    def __call__(self, hidden: Tensor, projection: Projection, targets: Tensor) -> LossSum:
        """Scores ``targets`` (B, T) under the logits of ``hidden`` (B, T, D)."""
        logits = projection.logits(hidden)[..., : projection.vocab_size].flatten(0, -2)  # (B*T, V)
        flat = targets.flatten()  # (B*T,)
        valid = flat != _IGNORE
        nats = F.cross_entropy(logits, flat, ignore_index=_IGNORE, reduction="sum")
        log_p = logits.log_softmax(-1)
        entropy = torch.where(valid, -(log_p.exp() * log_p).sum(-1), 0.0).sum()
        objective = nats - self.weight * entropy
        return LossSum(objective=objective, nats=nats.detach(), tokens=valid.sum())
