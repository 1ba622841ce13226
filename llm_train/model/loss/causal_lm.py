"""Computes the cross-entropy of the next token with all logits at once.

This is the reference that ``chunked`` must equal. Its logits take ``4 B T V`` bytes in float32, and
the backward pass needs about twice that again. It returns sums (``base`` says why), and its only
regulariser is the z-loss.

Shapes: B batch, T positions, D width, V padded vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from llm_train.errors import check_at_least
from llm_train.model.loss.base import LossSum, Projection
from llm_train.model.loss.per_token import PerTokenLoss, nats_of


@dataclass(frozen=True, kw_only=True)
class CausalLM(PerTokenLoss):
    """Sums the cross-entropy in nats over the valid targets; holds all logits of a micro-batch.

    Attributes:
        z_loss: weight of ``log(Z)**2`` per valid target, where Z is the softmax's normaliser (PaLM,
            arXiv:2204.02311, section 5: 1e-4). It is part of the objective, never of the nats. 0
            turns it off.
        ignore_index: a target with this value does not count.
    """

    z_loss: float = 0.0
    ignore_index: int = -100

    def __post_init__(self) -> None:
        hint = "; write 0 for none, or 1e-4 as PaLM does"
        check_at_least(self, 0, "z_loss", prefix="loss.", hint=hint)

    def of_targets(self, logits: Tensor, columns: Tensor) -> Tensor:
        """(N, V), (N, 1) -> (N,), for losses that are made of this one."""
        nats = nats_of(logits, columns)
        return nats + self.z_loss * logits.logsumexp(-1).square() if self.z_loss else nats

    def __call__(self, hidden: Tensor, projection: Projection, targets: Tensor) -> LossSum:
        """Scores ``targets`` (B, T) under the logits of ``hidden`` (B, T, D)."""
        logits = projection.logits(hidden).flatten(0, -2)  # (B*T, V) float32
        flat = targets.flatten()  # (B*T,)
        ignored = self.ignore_index
        objective = F.cross_entropy(logits, flat, ignore_index=ignored, reduction="sum")  # ()
        nats = objective.detach()
        valid = flat != ignored
        if self.z_loss > 0.0:
            log_z = torch.where(valid, logits.logsumexp(-1), 0.0)  # (B*T,)
            objective = objective + self.z_loss * log_z.square().sum()
        return LossSum(objective=objective, nats=nats, tokens=valid.sum())
