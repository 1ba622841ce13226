"""Rises exponentially from a tiny rate to the configured one: a learning-rate range test.

A short run shows at which rate the loss falls fastest and from which it rises (Smith,
arXiv:1506.01186); ``llm-train advise RUN`` reads it off. It is no schedule to train with.
"""

from dataclasses import dataclass

from llm_train.errors import ConfigError
from llm_train.model.schedule.base import Multiplier, Schedule


@dataclass(frozen=True, kw_only=True)
class RangeTest(Schedule):
    """The factor is ``start ** (1 - p)``, with p from 0 at the first step to 1 at the last.

    >>> at = RangeTest(start=1e-4).build(total_steps=5, tokens_per_step=1)
    >>> [round(at(step), 6) for step in range(5)]
    [0.0001, 0.001, 0.01, 0.1, 1.0]

    Attributes:
        start: the first step's rate as a fraction of the configured one, which is the last's.
    """

    start: float = 1e-5

    def __post_init__(self) -> None:
        if not 0 < self.start < 1:
            raise ConfigError(
                f"schedule.start={self.start} must be above 0 and below 1; "
                "1e-5 covers five powers of ten"
            )

    def build(self, *, total_steps: int, tokens_per_step: int) -> Multiplier:
        """Returns the factor on the configured learning rate at each step."""
        last = max(total_steps - 1, 1)
        return lambda step: float(self.start ** (1 - step / last))
