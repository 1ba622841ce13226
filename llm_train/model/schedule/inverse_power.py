"""Warms up and then falls as a power of the step: 1/sqrt(t), 1/t, or between them.

What is unusual: it knows no end, so that a run may stop or go on anywhere, and that one file holds
two classics. A power of 1/2 is the Transformer's (Vaswani et al., arXiv:1706.03762, section 5.3). A
power of 1 is Robbins and Monro's (1951): their theorem wants the sum of all rates to be infinite,
so that any distance can be gone, and the sum of their squares to be finite, so that noise averages
out. Powers above 1/2 and up to 1 have both; 1/2 itself has an infinite sum of squares.
"""

from dataclasses import dataclass

from llm_train.errors import ConfigError
from llm_train.model.schedule.base import Multiplier, Schedule
from llm_train.model.schedule.shapes import ramp, rise_steps
from llm_train.units import Duration


@dataclass(frozen=True, kw_only=True)
class InversePower(Schedule):
    """The factor is ``min((step + 1) / W, 1)``, then ``(W / (step + 1)) ** power``.

    >>> schedule = InversePower(warmup=Duration(4, "steps"), power=0.5)
    >>> at = schedule.build(total_steps=64, tokens_per_step=1)
    >>> [at(step) for step in (0, 3, 15, 63)]
    [0.25, 1.0, 0.5, 0.25]

    Attributes:
        warmup: length W of the linear rise, and the unit of time of the fall; at least one step.
        power: 0.5 for 1/sqrt(t), 1 for 1/t.
    """

    warmup: Duration
    power: float = 0.5

    def __post_init__(self) -> None:
        if self.warmup.count < 1:
            raise ConfigError(
                f"schedule.warmup={self.warmup} is the unit of time in which the rate falls; give "
                "at least 1 step"
            )
        if not 0.0 < self.power <= 1.0:
            raise ConfigError(
                f"schedule.power={self.power} is not in (0, 1]; write 0.5 for 1/sqrt(t), 1.0 for "
                "1/t, or use Constant"
            )

    def build(self, *, total_steps: int, tokens_per_step: int) -> Multiplier:
        """Returns the factor on the peak learning rate at each step."""
        rise = rise_steps(self.warmup, total_steps=total_steps, tokens_per_step=tokens_per_step)

        def multiplier(step: int) -> float:
            fall: float = (rise / max(rise, step + 1)) ** self.power
            return ramp(step, rise) * fall

        return multiplier
