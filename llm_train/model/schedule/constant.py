"""Warms up and then stays at the peak until the end."""

from dataclasses import dataclass
from functools import partial

from llm_train.model.schedule.base import Multiplier, Schedule
from llm_train.model.schedule.shapes import ramp, rise_steps
from llm_train.units import Duration

_NO_WARMUP = Duration(0, "steps")


@dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """The factor is ``min((step + 1) / W, 1)``.

    >>> at = Constant(warmup=Duration(4, "steps")).build(total_steps=6, tokens_per_step=1)
    >>> [at(step) for step in range(6)]
    [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]

    Attributes:
        warmup: length W of the linear rise; ``0 steps`` starts at the peak.
    """

    warmup: Duration = _NO_WARMUP

    def build(self, *, total_steps: int, tokens_per_step: int) -> Multiplier:
        """Returns the factor on the peak learning rate at each step."""
        lengths = {"total_steps": total_steps, "tokens_per_step": tokens_per_step}
        return partial(ramp, warmup_steps=rise_steps(self.warmup, **lengths))
