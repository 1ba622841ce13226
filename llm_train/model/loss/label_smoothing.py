"""Cross-entropy against targets that are a little uncertain (Szegedy et al., arXiv:1512.00567).

Its gradient at the logits is ``p - (1 - s) onehot - s / V``: it vanishes at a finite gap between
the target's logit and the others', so that weights need not grow for ever.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from llm_train.errors import check_at_least
from llm_train.model.loss.per_token import PerTokenLoss


@dataclass(frozen=True, kw_only=True)
class LabelSmoothing(PerTokenLoss):
    """``(1 - s) nats + s mean_v(-log p_v)`` for each valid target.

    Attributes:
        smoothing: s, the probability that is spread evenly over the vocabulary.
    """

    smoothing: float = 0.1

    def __post_init__(self) -> None:
        hint = "; a usual value is 0.1"
        check_at_least(self, 0, "smoothing", below=1, prefix="loss.", hint=hint)

    def of_targets(self, logits: Tensor, columns: Tensor) -> Tensor:
        """(N, V), (N, 1) -> (N,)."""
        log_p = F.log_softmax(logits, dim=-1)
        nats = -log_p.gather(-1, columns).squeeze(-1)
        return (1.0 - self.smoothing) * nats - self.smoothing * log_p.mean(-1)
