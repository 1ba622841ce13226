"""LAMB (You et al., arXiv:1904.00962, algorithm 2): Adam's update in proportion to each layer.

With Adam's moments m and v, both with bias correction as in the paper's algorithm (its first public
code left it out), decay b and rate r::

    u = m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + b W
    W <- W - r (|W| / |u|) u

The paper's bounds on |W| are the identity here, as in its experiments.
"""

from dataclasses import dataclass
from typing import ClassVar

from llm_train.model.optimizer.update_rule import Layerwise, Update


@dataclass(frozen=True, kw_only=True)
class LAMB(Layerwise):
    """Adam with a trust ratio for each matrix; runs under DDP and FSDP, not under ZeRO.

    Attributes:
        learning_rate: the peak, before batch scaling: the fraction of its own size by which a
            matrix moves.
        betas: decay rates of the first and the second moment.
        eps: added to the root of the second moment.
        weight_decay: of W in the update, before the trust ratio, for parameters with two or more
            dimensions.
    """

    buffers: ClassVar[int] = 2

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-6
    weight_decay: float = 0.01

    def update(self, now: Update) -> None:
        """One step."""
        (first, second), gradient = self.betas, now.gradient
        mean = now.buffer("exp_avg").lerp_(gradient, 1.0 - first)
        square = now.buffer("exp_avg_sq").mul_(second)
        square.addcmul_(gradient, gradient, value=1.0 - second)
        root = (square / (1.0 - second**now.step)).sqrt_().add_(self.eps)
        update = mean / (1.0 - first**now.step) / root + now.decay * now.weight
        now.weight.sub_(update * (now.rate * self.trust_ratio(now.weight, update)))
