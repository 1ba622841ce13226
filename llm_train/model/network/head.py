"""The module that owns the output weight, and inside which a loss runs.

Sharding strategies gather a parameter when the forward of its module is entered and release it
afterwards. Whatever needs the weight is therefore called from here, as a readout.
"""

import torch
from torch import Tensor, nn

from llm_train.model.network.base import Projection, R, Readout
from llm_train.model.network.shadow import HasShadow
from llm_train.runtime.sharded import is_dtensor


class Head(HasShadow, nn.Module):
    """Output projection without a bias.

    Args:
        width: D.
        rows: V, the padded vocabulary.
        vocab_size: real token ids, at most V.
        soft_cap: see ``Projection``.
    """

    def __init__(self, width: int, rows: int, *, vocab_size: int, soft_cap: float) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.soft_cap = soft_cap
        self.weight = nn.Parameter(torch.zeros(rows, width))

    def forward(self, hidden: Tensor, readout: Readout[R]) -> R:
        """Calls ``readout`` with (B, T, D) and the projection."""
        weight = _whole(self.weight)
        return readout(hidden, Projection(weight, self.vocab_size, self.soft_cap, self.shadow))


def _whole(weight: Tensor) -> Tensor:
    """(V, D), gathered where tensor parallelism has cut it; gradients add up over the ranks.

    Each of them scores positions of its own, so each has a part of the gradient.
    """
    if not is_dtensor(weight):
        return weight
    from torch.distributed.tensor import Partial, Replicate

    gathered = weight.redistribute(placements=[Replicate()])
    whole: Tensor = gathered.to_local(grad_placements=[Partial()])
    return whole
