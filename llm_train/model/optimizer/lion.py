"""Lion (Chen et al., arXiv:2302.06675, algorithm 2): the sign of an interpolated momentum.

What is unusual: every element moves by the learning rate exactly, so that the rate should be three
to ten times smaller than AdamW's and the decay as many times larger (section 5 there).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from llm_train.context import UpdateSize
from llm_train.model.optimizer.update_rule import Update, UpdateRule


@dataclass(frozen=True, kw_only=True)
class Lion(UpdateRule):
    """The sign of ``b1 m + (1 - b1) g``, where ``m <- b2 m + (1 - b2) g`` follows more slowly.

    Attributes:
        learning_rate: the peak, before batch scaling; a third to a tenth of AdamW's.
        betas: weight of the momentum in the update, and what a step leaves of the momentum.
        weight_decay: fraction taken off per step, times the learning rate, of parameters with two
            or more dimensions.
    """

    update_size: ClassVar[UpdateSize] = "element"

    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.3

    def update(self, now: Update) -> None:
        """One step."""
        momentum = now.buffer("momentum")
        now.move(torch.lerp(now.gradient, momentum, self.betas[0]).sign_())
        momentum.lerp_(now.gradient, 1.0 - self.betas[1])
