"""The functions of which schedules are composed, and the conventions that all of them share.

Steps are numbered 0 .. N-1. Warm-up over W steps multiplies by ``(step + 1) / W``: step 0 already
learns, and step W-1 is the first at exactly 1. ``W=0`` and ``W=1`` are therefore the same, and step
0 is at the peak. A decay ends *on* the last step, N-1, exactly at its floor.

Every ``shape`` maps the progress of a decay, from 0 at the peak to 1 at the end, to a factor from 1
to 0.
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from llm_train.errors import ConfigError, check_at_least
from llm_train.model.schedule.base import Multiplier, Schedule
from llm_train.units import Duration

Shape = Callable[[float], float]


def ramp(step: int, warmup_steps: int) -> float:
    """Rises linearly during warm-up.

    >>> [ramp(step, 4) for step in range(6)]
    [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    >>> ramp(0, 0)
    1.0
    """
    return 1.0 if step + 1 >= warmup_steps else (step + 1) / warmup_steps


def rise_steps(warmup: Duration, *, total_steps: int, tokens_per_step: int) -> int:
    """Length of a warm-up after which nothing needs a step of its own.

    Raises:
        ConfigError: it is longer than the run.
    """
    rise = warmup.steps(tokens_per_step)
    if rise > total_steps:
        raise ConfigError(
            f"schedule.warmup={warmup} is {rise} steps, longer than the run's {total_steps}; warm "
            f"up for at most {total_steps} steps or train longer"
        )
    return rise


def linear(progress: float) -> float:
    """Falls on a straight line.

    >>> [linear(x) for x in (0.0, 0.25, 1.0)]
    [1.0, 0.75, 0.0]
    """
    return 1.0 - progress


def sqrt(progress: float) -> float:
    """Falls as 1 - p**0.5, steep at first (Hägele et al., arXiv:2405.18392, section 3).

    >>> [sqrt(x) for x in (0.0, 0.25, 1.0)]
    [1.0, 0.5, 0.0]
    """
    return 1.0 - math.sqrt(progress)


def cosine(progress: float) -> float:
    """Falls on half a cosine wave (Loshchilov & Hutter, arXiv:1608.03983).

    >>> [round(cosine(x), 3) for x in (0.0, 0.25, 0.5, 1.0)]
    [1.0, 0.854, 0.5, 0.0]
    """
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def rise_and_fall(shape: Shape, rise: int, start: int, end: int, floor: float) -> Multiplier:
    """Rises over ``rise`` steps and falls by ``shape`` from step ``start`` to ``floor`` at ``end``.

    >>> at = rise_and_fall(linear, rise=2, start=1, end=5, floor=0.2)
    >>> [round(at(step), 3) for step in (0, 1, 2, 5, 9)]
    [0.5, 1.0, 0.8, 0.2, 0.2]
    """

    def multiplier(step: int) -> float:
        # Clamped at the end, because torch's schedulers ask once for a step after the last. In a
        # run of one step the start is the end, and that step is at the peak.
        progress = min(max(step - start, 0) / (end - start), 1.0) if end > start else 0.0
        factor = shape(progress)
        return ramp(step, rise) * (floor * (1.0 - factor) + factor)

    return multiplier


@dataclass(frozen=True, kw_only=True)
class Decaying(Schedule):
    """Base of schedules that warm up and then fall to a floor, from the peak to the last step.

    Attributes:
        warmup: length W of the linear rise; ``0 steps`` starts at the peak.
        floor: the last step's learning rate as a fraction of the peak.
    """

    warmup: Duration
    floor: float = 0.0

    def __post_init__(self) -> None:
        hint = "; write 0.1 for a tenth of the peak, or use Constant for no decay"
        check_at_least(self, 0, "floor", below=1, prefix="schedule.", hint=hint)

    @abstractmethod
    def fall(self, progress: float) -> float:
        """The factor, from 1 at the peak (progress 0) to 0 at the end (1)."""

    def build(self, *, total_steps: int, tokens_per_step: int) -> Multiplier:
        """Returns the factor on the peak learning rate at each step."""
        rise = self.warmup.steps(tokens_per_step)
        peak, last = max(rise, 1) - 1, total_steps - 1
        # The only step of a run of one step is at the peak.
        if peak > last or peak == last > 0:
            raise ConfigError(
                f"schedule.warmup={self.warmup} is {rise} steps and leaves none of the run's "
                f"{total_steps} for the decay; warm up for at most {max(last, 1)} steps or train "
                "longer"
            )
        return rise_and_fall(self.fall, rise, peak, last, self.floor)
