"""A schedule: warm-up, then the inverse square root of the step (arXiv:1706.03762, section 5.3)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from llm_train.errors import ConfigError
from llm_train.model.schedule import Multiplier, Schedule
from llm_train.units import Duration


@dataclass(frozen=True, kw_only=True)
class InverseSqrt(Schedule):
    """``min((step + 1) / W, sqrt(W / (step + 1)))``.

    >>> at = InverseSqrt(warmup=Duration(4, "steps")).build(total_steps=16, tokens_per_step=1)
    >>> [at(step) for step in (0, 3, 15)]
    [0.25, 1.0, 0.5]

    Attributes:
        warmup: length W of the linear rise, at least one step.
    """

    warmup: Duration

    def __post_init__(self) -> None:
        if self.warmup.count < 1:
            raise ConfigError(f"schedule.warmup={self.warmup} must be at least 1 steps")

    def build(self, *, total_steps: int, tokens_per_step: int) -> Multiplier:
        """Returns the factor on the peak learning rate at each step."""
        warmup_steps = self.warmup.steps(tokens_per_step)

        def multiplier(step: int) -> float:
            return min((step + 1) / warmup_steps, math.sqrt(warmup_steps / (step + 1)))

        return multiplier
