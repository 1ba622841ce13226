"""Falls on half a cosine wave again and again (SGDR: Loshchilov & Hutter, arXiv:1608.03983).

What is unusual: every cycle reaches the floor on its last step, as all decays here do (torch's
restarts just before it), and each cycle depends on nothing that comes after it. A finished
``WarmupCosine`` run whose cycle is one period long can therefore be continued: everything up to its
end stays what it was, and then the rate jumps back to the peak because the configuration says so.
"""

from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise

from llm_train.errors import ConfigError, check_at_least
from llm_train.model.schedule.base import Multiplier
from llm_train.model.schedule.shapes import Decaying, cosine, rise_and_fall
from llm_train.units import Duration


@dataclass(frozen=True, kw_only=True)
class CosineRestarts(Decaying):
    """Cycles of ``floor + (1 - floor) (1 + cos(pi p)) / 2``, each from the peak to the floor.

    >>> warmup, period = Duration(2, "steps"), Duration(3, "steps")
    >>> schedule = CosineRestarts(warmup=warmup, period=period, growth=2.0, floor=0.0)
    >>> at = schedule.build(total_steps=10, tokens_per_step=1)
    >>> [round(at(step), 3) for step in range(10)]
    [0.5, 1.0, 0.5, 0.0, 1.0, 0.905, 0.655, 0.345, 0.095, 0.0]

    Attributes:
        warmup: length W of the linear rise before the first cycle; ``0 steps`` starts at the peak.
        period: length of the first cycle, from its first step at the peak to its step at the floor.
        growth: how many times longer each cycle is than the one before.
        floor: the last step of a cycle, as a fraction of the peak.
    """

    period: Duration
    growth: float = 1.0
    floor: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        hint = "; 1 repeats the period and 2 doubles it"
        check_at_least(self, 1, "growth", below=100, prefix="schedule.", hint=hint)

    def fall(self, progress: float) -> float:
        """On half a cosine wave."""
        return cosine(progress)

    def build(self, *, total_steps: int, tokens_per_step: int) -> Multiplier:
        """Returns the factor on the peak learning rate at each step."""
        rise, period = (each.steps(tokens_per_step) for each in (self.warmup, self.period))
        starts = [max(rise, 1) - 1]
        if starts[0] + 2 >= total_steps:
            most = total_steps - (period if 2 <= period < total_steps else 2)
            raise ConfigError(
                f"schedule.warmup={self.warmup} is {rise} steps and leaves none of the run's "
                f"{total_steps} for a restart; "
                + (f"warm up for at most {most} steps, " if most > 0 else "")
                + "train longer, or use WarmupCosine"
            )
        if period < 2 or starts[0] + period >= total_steps:
            raise ConfigError(
                f"schedule.period={self.period} is {period} steps and leaves no restart in the "
                f"run's {total_steps}; write 2 to {total_steps - starts[0] - 1} steps, "
                "train longer, or use WarmupCosine"
            )
        while starts[-1] < total_steps:
            starts.append(starts[-1] + period)
            period = round(period * self.growth)
        cycles = [
            rise_and_fall(self.fall, rise, start, after - 1, self.floor)
            for start, after in pairwise(starts)
        ]

        def multiplier(step: int) -> float:
            begun = bisect_right(starts, step)
            return cycles[min(max(begun, 1), len(cycles)) - 1](step)

        return multiplier
