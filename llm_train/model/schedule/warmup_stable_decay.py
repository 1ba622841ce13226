"""Warms up, stays on a plateau, and decays briefly at the end, so the length is chosen late.

The decay is a ``Duration`` counted back from the end, so warm-up and plateau are the same for every
length of run. A run that was stopped on the plateau can be continued, or decayed from there (Hu et
al., MiniCPM, arXiv:2404.06395; Hägele et al., arXiv:2405.18392, who decay for 10 to 20 % of the
run).
"""

from dataclasses import dataclass
from typing import Literal

from llm_train.errors import ConfigError, check_choices
from llm_train.model.schedule.base import Multiplier
from llm_train.model.schedule.shapes import Decaying, cosine, linear, rise_and_fall, sqrt
from llm_train.units import Duration

_SHAPES = {"linear": linear, "sqrt": sqrt, "cosine": cosine}


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
        check_choices(self, "schedule.")
        if self.decay.count < 1:
            raise ConfigError(
                f"schedule.decay={self.decay} gives shape and floor no effect; "
                "write at least 1 step, or use Constant"
            )

    def fall(self, progress: float) -> float:
        """By the configured shape."""
        return _SHAPES[self.shape](progress)

    def build(self, *, total_steps: int, tokens_per_step: int) -> Multiplier:
        """Returns the factor on the peak learning rate at each step."""
        warmup_steps = self.warmup.steps(tokens_per_step)
        decay_steps = self.decay.steps(tokens_per_step)
        # A warm-up of 0 steps needs one step at the peak, just as a warm-up of 1 step does.
        if max(warmup_steps, 1) + decay_steps > total_steps:
            raise ConfigError(
                f"schedule.warmup={self.warmup} and schedule.decay={self.decay} need "
                f"{max(warmup_steps, 1)} + {decay_steps} steps and the run has {total_steps}; "
                "shorten one of them or train longer"
            )
        last = total_steps - 1
        return rise_and_fall(self.fall, warmup_steps, last - decay_steps, last, self.floor)
