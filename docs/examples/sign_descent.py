"""An optimizer: the sign of the gradient (Bernstein et al., arXiv:1802.04434), with momentum.

What is unusual: nothing here knows about sharding. Every operation is element by element, so the
same lines update plain tensors and the shards of a DTensor, and state in the parameter's shape is
saved and resharded like AdamW's.
"""

from __future__ import annotations

from dataclasses import dataclass

from llm_train.model.optimizer.update_rule import Update, UpdateRule


@dataclass(frozen=True, kw_only=True)
class SignDescent(UpdateRule):
    """Every element moves by the learning rate, against the sign of the momentum.

    Attributes:
        learning_rate: the peak; about a tenth of what AdamW would use.
        momentum: what a step leaves of the average of gradients.
        weight_decay: of parameters with two or more dimensions.
    """

    momentum: float = 0.9

    def update(self, now: Update) -> None:
        """One step."""
        average = now.buffer("momentum").lerp_(now.gradient, 1.0 - self.momentum)
        now.move(average.sign())
