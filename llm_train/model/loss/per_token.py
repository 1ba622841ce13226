"""What most losses are: a function of the logits of one target, summed over the targets.

Such a function is written once, for logits that are there; ``Chunked`` runs it piece by piece.

Shapes: N = B*T positions, V vocabulary without padding.
"""

from abc import abstractmethod

import torch
from torch import Tensor
from torch.nn import functional as F

from llm_train.model.loss.base import Loss, LossSum, Projection


class PerTokenLoss(Loss):
    """Scores each target alone; called, it holds all logits of a micro-batch."""

    @abstractmethod
    def of_targets(self, logits: Tensor, columns: Tensor) -> Tensor:
        """(N, V) real logits and (N, 1) columns of the targets -> (N,) objective, one by one."""

    def score(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Objective and nats of ``targets`` (N,), summed over the valid ones."""
        valid = targets != self.ignore_index
        # An ignored target may be any number, so we read column 0 in its place and drop the result.
        columns = torch.where(valid, targets, 0).unsqueeze(-1)  # (N, 1)
        objective = torch.where(valid, self.of_targets(logits, columns), 0.0).sum()
        nats = torch.where(valid, nats_of(logits.detach(), columns), 0.0).sum()
        return objective, nats

    def __call__(self, hidden: Tensor, projection: Projection, targets: Tensor) -> LossSum:
        """Scores ``targets`` (B, T) under the logits of ``hidden`` (B, T, D)."""
        logits = projection.logits(hidden)[..., : projection.vocab_size].flatten(0, -2)
        objective, nats = self.score(logits, targets.flatten())
        valid = targets != self.ignore_index
        return LossSum(objective=objective, nats=nats, tokens=valid.sum())


def nats_of(logits: Tensor, columns: Tensor) -> Tensor:
    """(N,) cross-entropy of each target: the largest logit is taken off before any exponential."""
    return -F.log_softmax(logits, dim=-1).gather(-1, columns).squeeze(-1)
