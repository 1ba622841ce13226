"""The functions of which schedules are composed, and the conventions that all of them share.

Steps are numbered 0 .. N-1. Warm-up over W steps multiplies by ``(step + 1) / W``: step 0 already
learns, and step W-1 is the first at exactly 1. ``W=0`` and ``W=1`` are therefore the same, and step
0 is at the peak. A decay ends *on* the last step, N-1, exactly at its floor.

Every ``shape`` maps the progress of a decay, from 0 at the peak to 1 at the end, to a factor from 1
to 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from llm_train.errors import ConfigError
from llm_train.model.schedule.base import Multiplier
from llm_train.units import Duration


def ramp(step: int, warmup_steps: int) -> float:
    """Rises linearly during warm-up.

    >>> [ramp(step, 4) for step in range(6)]
    [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    >>> ramp(0, 0)
    1.0
    """
    return 1.0 if step + 1 >= warmup_steps else (step + 1) / warmup_steps


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


def above(floor: float, factor: float) -> float:
    """Maps a factor in [0, 1] into [floor, 1].

    >>> [above(0.1, factor) for factor in (0.0, 1.0)]
    [0.1, 1.0]
    """
    return floor * (1.0 - factor) + factor


def check_floor(floor: float) -> None:
    """Checks that a floor is in [0, 1).

    Raises:
        ConfigError: if it is not.
    """
    if not 0.0 <= floor < 1.0:
        raise ConfigError(
            f"schedule.floor={floor} is not a fraction of the peak in [0, 1); "
            "write 0.1 for a tenth, or use Constant for no decay"
        )


def peak_step(warmup: Duration, total_steps: int, tokens_per_step: int) -> int:
    """Returns the first step at the peak, from which the decay runs to the last step.

    Raises:
        ConfigError: if no step is left for the decay. (The only step of a run of one step is at the
            peak.)
    """
    steps = warmup.steps(tokens_per_step)
    peak = max(steps, 1) - 1
    if peak > total_steps - 1 or (peak == total_steps - 1 and total_steps > 1):
        raise ConfigError(
            f"schedule.warmup={warmup} is {steps} steps and leaves none of the run's {total_steps} "
            f"for the decay; warm up for at most {max(total_steps - 1, 1)} steps or train longer"
        )
    return peak


def between(step: int, start: int, end: int) -> float:
    """Returns the progress from ``start`` (0) to ``end`` (1), clamped; 0 if the two are the same.

    >>> [between(step, 2, 6) for step in (0, 2, 3, 6, 9)]
    [0.0, 0.0, 0.25, 1.0, 1.0]
    >>> between(5, 3, 3)
    0.0
    """
    # Clamped at the end, because torch's schedulers ask once for a step after the last.
    return min(max(step - start, 0) / (end - start), 1.0) if end > start else 0.0


def rise_and_fall(
    shape: Callable[[float], float], warmup_steps: int, start: int, end: int, floor: float
) -> Multiplier:
    """Rises over ``warmup_steps`` and falls by ``shape`` from step ``start`` to step ``end``."""

    def multiplier(step: int) -> float:
        return ramp(step, warmup_steps) * above(floor, shape(between(step, start, end)))

    return multiplier
