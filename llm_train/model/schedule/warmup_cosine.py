"""Warms up and then falls on half a cosine wave to the last step."""

from dataclasses import dataclass

from llm_train.model.schedule.shapes import Decaying, cosine
from llm_train.units import Duration


@dataclass(frozen=True, kw_only=True)
class WarmupCosine(Decaying):
    """The factor is ``min((step + 1) / W, 1)``, then ``floor + (1 - floor) (1 + cos(pi p)) / 2``.

    Here p runs from 0 at the first step at the peak, ``max(W, 1) - 1``, to 1 at the last step, so
    the last step is at the floor. With ``floor=0`` that step changes nothing.

    >>> schedule = WarmupCosine(warmup=Duration(2, "steps"), floor=0.1)
    >>> at = schedule.build(total_steps=6, tokens_per_step=1)
    >>> [round(at(step), 3) for step in range(6)]
    [0.5, 1.0, 0.868, 0.55, 0.232, 0.1]

    Attributes:
        warmup: length W of the linear rise; ``0 steps`` starts at the peak.
        floor: the last step's learning rate as a fraction of the peak.
    """

    warmup: Duration
    floor: float = 0.1

    def fall(self, progress: float) -> float:
        """On half a cosine wave."""
        return cosine(progress)
