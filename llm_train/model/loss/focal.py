"""Cross-entropy that counts targets less the better they are predicted."""

from dataclasses import dataclass

import torch
from torch import Tensor

from llm_train.errors import check_at_least
from llm_train.model.loss.per_token import PerTokenLoss, nats_of


@dataclass(frozen=True, kw_only=True)
class Focal(PerTokenLoss):
    """``(1 - p) ** gamma nats`` for each valid target, p being its probability (arXiv:1708.02002).

    Attributes:
        gamma: 0 is cross-entropy; 2 is the authors' choice for detecting objects in pictures.
    """

    gamma: float = 2.0

    def __post_init__(self) -> None:
        check_at_least(self, 0, "gamma", prefix="loss.", hint="; the authors take 2")

    def of_targets(self, logits: Tensor, columns: Tensor) -> Tensor:
        """(N, V), (N, 1) -> (N,)."""
        nats = nats_of(logits, columns)
        # 1 - p loses all digits where p is near 1. At p = 1 itself a power below 1 has no slope.
        missing = (-torch.expm1(-nats)).clamp_min(torch.finfo(nats.dtype).tiny)
        return missing**self.gamma * nats
