"""Squared error on probabilities: what not to minimise, and why.

Its gradient at the logits is ``p * ((p - y) - sum_v p_v (p_v - y_v))``. The factor p is the slope
of the softmax. Where the network is sure and wrong the target's p is near 0, and so is its
gradient: of two tokens, with p = 0.01 for the right one, it is -0.02, where cross-entropy has
p - 1 = -0.99. A network that starts out sure and wrong does not learn.
"""

from dataclasses import dataclass

from torch import Tensor

from llm_train.model.loss.per_token import PerTokenLoss


@dataclass(frozen=True, kw_only=True)
class SquaredError(PerTokenLoss):
    """``sum_v (p_v - y_v) ** 2 / 2`` for each valid target, y being 1 at it and else 0."""

    def of_targets(self, logits: Tensor, columns: Tensor) -> Tensor:
        """(N, V), (N, 1) -> (N,)."""
        p = logits.softmax(-1)
        return 0.5 * (p.square().sum(-1) + 1.0) - p.gather(-1, columns).squeeze(-1)
