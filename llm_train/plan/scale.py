"""A deep network and any micro-batch from shallow ones and small: exact, since all is affine.

Blocks are identical, so bytes and operations of a network of L blocks are ``a + b L``, and of a
micro-batch of B samples ``a + b L + c B + d L B``. Two depths and two micro-batches are therefore
enough, three and four blocks being the smallest that have a first, an inner and a last one. The
depths differ by the period of the recompute policy, so that both end alike. Peaks are affine phase
by phase, and the largest is taken afterwards. A network without a setting ``layers`` is simulated
as it is.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import Any

from llm_train.plan.operators import Measured
from llm_train.plan.simulate import Case, simulate

_SHALLOW = 3


def at_depth(case: Case) -> Measured:
    """What ``simulate`` would measure, from two shallow networks where that is cheaper."""
    config: Any = case.network
    layers = getattr(config, "layers", 0)
    period = case.recompute.period
    low = max(_SHALLOW, period)
    low += (layers - low) % period  # so that it ends like the deep one, a whole period apart
    high = low + period
    if layers <= high:
        return simulate(case)
    small, large = (simulate(replace(case, network=replace(config, layers=n))) for n in (low, high))
    return _line(small, large, (layers - low) / period)


class Scaled:
    """A case at every micro-batch, simulated at two.

    Args:
        case: its own micro-batch does not matter.
    """

    def __init__(self, case: Case) -> None:
        self._simulated = cache(lambda size: at_depth(replace(case, micro_batch=size)))
        # A loss in chunks is affine from its first full chunk on.
        chunk = getattr(case.loss, "chunk_tokens", 1)
        self._first = math.ceil(chunk / case.sequence)

    def at(self, micro_batch: int) -> Measured:
        """What a step with ``micro_batch`` samples would take."""
        if micro_batch < self._first:
            return self._simulated(micro_batch)
        small, large = self._simulated(self._first), self._simulated(2 * self._first)
        return _line(small, large, (micro_batch - self._first) / self._first)


def peak(found: Measured) -> tuple[str, float]:
    """The phase with the largest peak, and its bytes."""
    phases = {key: size for key, size in found.items() if key.startswith("peak ")}
    phase = max(phases, key=lambda key: phases[key])
    return phase.removeprefix("peak "), phases[phase]


def _line(at_zero: Measured, at_one: Measured, x: float) -> Measured:
    keys = at_zero.keys() & at_one.keys()
    return {key: at_zero[key] + x * (at_one[key] - at_zero[key]) for key in keys}
