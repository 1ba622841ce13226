"""Warms up and then falls on a straight line to the last step."""

from dataclasses import dataclass

from llm_train.model.schedule.shapes import Decaying, linear
from llm_train.units import Duration


@dataclass(frozen=True, kw_only=True)
class Linear(Decaying):
    """The factor is ``min((step + 1) / W, 1)``, then ``floor + (1 - floor) (1 - p)``.

    Here p runs from 0 at the first step at the peak, ``max(W, 1) - 1``, to 1 at the last step, so
    the last step is at the floor. With ``floor=0`` that step changes nothing.

    >>> schedule = Linear(warmup=Duration(2, "steps"), floor=0.0)
    >>> at = schedule.build(total_steps=6, tokens_per_step=1)
    >>> [round(at(step), 3) for step in range(6)]
    [0.5, 1.0, 0.75, 0.5, 0.25, 0.0]

    Attributes:
        warmup: length W of the linear rise; ``0 steps`` starts at the peak.
        floor: the last step's learning rate as a fraction of the peak.
    """

    warmup: Duration
    floor: float = 0.0

    def fall(self, progress: float) -> float:
        """On a straight line."""
        return linear(progress)
