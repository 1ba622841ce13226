"""LARS (You et al., arXiv:1708.03888, algorithm 1): SGD whose rate follows the size of each layer.

With gradient g, weight W, momentum m, decay b and global rate r::

    local = trust |W| / (|g| + b |W|)
    v <- m v + r local (g + b W)
    W <- W - v

The rate is inside the velocity, as in the paper, so that a change of the rate counts for the
gradients that come, not for those that v already holds.
"""

from dataclasses import dataclass

from llm_train.model.optimizer.update_rule import Layerwise, Update


@dataclass(frozen=True, kw_only=True)
class LARS(Layerwise):
    """SGD with momentum and a rate for each matrix; runs under DDP and FSDP, not under ZeRO.

    Attributes:
        learning_rate: the peak of the global rate, before batch scaling; vectors use it as it is.
        trust: of a matrix's own size that a step of rate 1 moves it.
        momentum: what a step leaves of the velocity.
        weight_decay: added to the gradient of parameters with two or more dimensions, times W.
    """

    trust: float = 0.001
    momentum: float = 0.9

    def update(self, now: Update) -> None:
        """One step."""
        local = self.trust_ratio(now.weight, now.gradient, now.decay)
        local = local if now.weight.ndim < 2 else self.trust * local
        slope = now.gradient + now.decay * now.weight
        velocity = now.buffer("velocity").mul_(self.momentum).add_(slope * (now.rate * local))
        now.weight.sub_(velocity)
