"""Schedules that warm up, and then stay at the peak or fall to a floor.

``Constant`` stays. The others reach the floor on the last step of the run.
``Linear`` and ``WarmupCosine`` fall from the end of the warm-up on. ``WarmupStableDecay`` stays on
a plateau and falls briefly at the end, so the length of a run is chosen late. Its decay is a
``Duration`` counted back from the end, so warm-up and plateau are the same for every length of run.
A run that was stopped on the plateau can be continued, or decayed from there (Hu et al., MiniCPM,
arXiv:2404.06395; Hägele et al., arXiv:2405.18392, who decay for 10 to 20 % of the run).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import Literal

from llm_train.errors import ConfigError, check_choices
from llm_train.model.schedule.base import Multiplier, Schedule
from llm_train.model.schedule.phases import cosine, linear, ramp, rise_and_fall, sqrt
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
        warmup_steps = self.warmup.steps(tokens_per_step)
        if warmup_steps > total_steps:
            raise ConfigError(
                f"schedule.warmup={self.warmup} is {warmup_steps} steps, longer than the run's "
                f"{total_steps}; warm up for at most {total_steps} steps or train longer"
            )
        return partial(ramp, warmup_steps=warmup_steps)


@dataclass(frozen=True, kw_only=True)
class Decaying(Schedule):
    """Base of the schedules that fall to a floor.

    Attributes:
        warmup: length W of the linear rise; ``0 steps`` starts at the peak.
        floor: the last step's learning rate as a fraction of the peak.
    """

    warmup: Duration
    floor: float = 0.0

    def __post_init__(self) -> None:
        check_choices(self, "schedule.")
        if not 0.0 <= self.floor < 1.0:
            raise ConfigError(
                f"schedule.floor={self.floor} is not a fraction of the peak in [0, 1); "
                "write 0.1 for a tenth, or use Constant for no decay"
            )


class DecayingThroughout(Decaying):
    """Base of the schedules that fall from the first step at the peak to the last step."""

    @staticmethod
    @abstractmethod
    def shape(progress: float) -> float:
        """Maps the progress of the decay to a factor, as the functions of ``phases`` do."""

    def build(self, *, total_steps: int, tokens_per_step: int) -> Multiplier:
        """Returns the factor on the peak learning rate at each step."""
        steps, last = self.warmup.steps(tokens_per_step), total_steps - 1
        peak = max(steps, 1) - 1
        # The only step of a run of one step is at the peak.
        if peak > last or peak == last > 0:
            raise ConfigError(
                f"schedule.warmup={self.warmup} is {steps} steps and leaves none of the run's "
                f"{total_steps} for the decay; warm up for at most {max(last, 1)} steps or train "
                "longer"
            )
        return rise_and_fall(self.shape, steps, peak, last, self.floor)


@dataclass(frozen=True, kw_only=True)
class Linear(DecayingThroughout):
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

    shape = staticmethod(linear)


@dataclass(frozen=True, kw_only=True)
class WarmupCosine(DecayingThroughout):
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

    floor: float = 0.1
    shape = staticmethod(cosine)


@dataclass(frozen=True, kw_only=True)
class WarmupStableDecay(Decaying):
    """The factor is ``min((step + 1) / W, 1)``, and decays over the last D steps.

    It is ``floor + (1 - floor) shape(p)`` there, with p = ``1/D, 2/D, ... 1``. The step before them
    is the last one at the peak, and the last step is at the floor. With ``floor=0`` that step
    changes nothing.

    >>> schedule = WarmupStableDecay(warmup=Duration(2, "steps"), decay=Duration(4, "steps"))
    >>> at = schedule.build(total_steps=8, tokens_per_step=1)
    >>> [round(at(step), 3) for step in range(8)]
    [0.5, 1.0, 1.0, 1.0, 0.5, 0.293, 0.134, 0.0]

    Attributes:
        warmup: length W of the linear rise; ``0 steps`` starts at the peak.
        decay: length D of the fall at the end of the run.
        shape: the fall: ``linear`` 1 - p, ``sqrt`` 1 - sqrt(p), ``cosine`` (1 + cos(pi p)) / 2.
        floor: the last step's learning rate as a fraction of the peak.
    """

    decay: Duration
    shape: Literal["linear", "sqrt", "cosine"] = "sqrt"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decay.count < 1:
            raise ConfigError(
                f"schedule.decay={self.decay} gives shape and floor no effect; "
                "write at least 1 step, or use Constant"
            )

    def build(self, *, total_steps: int, tokens_per_step: int) -> Multiplier:
        """Returns the factor on the peak learning rate at each step."""
        rise, fall = self.warmup.steps(tokens_per_step), self.decay.steps(tokens_per_step)
        # A warm-up of 0 steps needs one step at the peak, just as a warm-up of 1 step does.
        if max(rise, 1) + fall > total_steps:
            raise ConfigError(
                f"schedule.warmup={self.warmup} and schedule.decay={self.decay} need "
                f"{max(rise, 1)} + {fall} steps and the run has {total_steps}; "
                "shorten one of them or train longer"
            )
        shape = {"linear": linear, "sqrt": sqrt, "cosine": cosine}[self.shape]
        last = total_steps - 1
        return rise_and_fall(shape, rise, last - fall, last, self.floor)
