"""Warms up and then falls on a straight line to the last step."""

from __future__ import annotations

from dataclasses import dataclass

from llm_train.model.schedule.base import Multiplier, Schedule
from llm_train.model.schedule.shapes import check_floor, linear, peak_step, rise_and_fall
from llm_train.units import Duration


@dataclass(frozen=True, kw_only=True)
class Linear(Schedule):
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

    def __post_init__(self) -> None:
        check_floor(self.floor)

    def build(self, *, total_steps: int, tokens_per_step: int) -> Multiplier:
        """Returns the factor on the peak learning rate at each step."""
        peak = peak_step(self.warmup, total_steps, tokens_per_step)
        rise = self.warmup.steps(tokens_per_step)
        return rise_and_fall(linear, rise, peak, total_steps - 1, self.floor)
