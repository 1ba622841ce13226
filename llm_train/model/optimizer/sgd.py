"""Stochastic gradient descent with momentum, in both of its forms, and Nesterov's.

What is unusual: there are two momenta, which textbooks and libraries confuse. With gradient g and
momentum b, from v = 0::

    velocity   v <- b v + g               (Polyak; torch's SGD)
    average    v <- b v + (1 - b) g       (as Adam's first moment, without bias correction)
    W <- W - lr v

The average is 1 - b times the velocity in every step, so that it needs 1 / (1 - b) times the rate
for the same path; a rate of 0.1 with b = 0.9 means a tenth of the steps. torch's ``dampening`` is a
third: it takes the whole first gradient, and 1 - dampening of all others.

Nesterov's form looks ahead: the gradient counts once more, and W moves by ``b v + g``, or by
``b v + (1 - b) g`` (Sutskever et al. 2013, as torch writes it).
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from llm_train.errors import ConfigError
from llm_train.model.optimizer.update_rule import Update, UpdateRule


@dataclass(frozen=True, kw_only=True)
class SGD(UpdateRule):
    """Gradient descent with momentum as a velocity or as an average; decoupled weight decay.

    Attributes:
        learning_rate: the peak, before batch scaling; the schedule multiplies it.
        momentum: what a step leaves of v; 0 is plain gradient descent, which keeps no state.
        form: ``velocity`` v <- b v + g, or ``average`` v <- b v + (1 - b) g, which moves 1 - b
            times as far.
        nesterov: whether the gradient counts once more after v has been updated.
        weight_decay: fraction taken off per step, times the learning rate, of parameters with two
            or more dimensions.
    """

    momentum: float = 0.9
    form: Literal["velocity", "average"] = "velocity"
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.momentum == 0.0 and (self.nesterov or self.form != "velocity"):
            raise ConfigError(
                "optimizer.momentum=0.0 gives form and nesterov no effect; remove them, or write "
                "momentum=0.9"
            )

    def state_bytes(self, name: str, parameter: Tensor) -> int:
        """v, if there is momentum."""
        return super().state_bytes(name, parameter) if self.momentum else 0

    def update(self, now: Update) -> None:
        """One step."""
        gradient = now.gradient
        if self.momentum:
            if self.form == "average":
                gradient = gradient * (1.0 - self.momentum)
            moved = now.buffer("momentum").mul_(self.momentum).add_(gradient)
            gradient = gradient + self.momentum * moved if self.nesterov else moved
        now.move(gradient)
