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

from llm_train.model.schedule.base import Multiplier


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


def between(step: int, start: int, end: int) -> float:
    """Returns the progress from ``start`` (0) to ``end`` (1), clamped; 0 if the two are the same.

    >>> [between(step, 2, 6) for step in (0, 2, 3, 6, 9)]
    [0.0, 0.0, 0.25, 1.0, 1.0]
    >>> between(5, 3, 3)
    0.0
    """
    # Clamped at the end: torch's schedulers, for one, ask for a step after the last.
    return min(max(step - start, 0) / (end - start), 1.0) if end > start else 0.0


def rise_and_fall(
    shape: Callable[[float], float], warmup_steps: int, start: int, end: int, floor: float
) -> Multiplier:
    """Rises over ``warmup_steps`` and falls by ``shape`` from step ``start`` to step ``end``."""

    def multiplier(step: int) -> float:
        return ramp(step, warmup_steps) * above(floor, shape(between(step, start, end)))

    return multiplier
