"""A schedule: the rate falls to a fraction of itself every so often."""

from __future__ import annotations

from dataclasses import dataclass

from llm_train.errors import ConfigError, check_at_least
from llm_train.model.schedule import Multiplier, Schedule
from llm_train.units import Duration


@dataclass(frozen=True, kw_only=True)
class StepDecay(Schedule):
    """``factor ** (step // every)``.

    >>> at = StepDecay(every=Duration(2, "steps")).build(total_steps=6, tokens_per_step=1)
    >>> [at(step) for step in (0, 1, 2, 5)]
    [1.0, 1.0, 0.5, 0.25]

    Attributes:
        every: steps or tokens between two falls.
        factor: what is left of the rate after each of them.
    """

    every: Duration
    factor: float = 0.5

    def __post_init__(self) -> None:
        check_at_least(self, 0, "factor", below=1, prefix="schedule.")
        if self.every.count < 1:
            raise ConfigError(f"schedule.every={self.every} must be at least 1 steps")

    def build(self, *, total_steps: int, tokens_per_step: int) -> Multiplier:
        """Returns the factor on the peak learning rate at each step."""
        every = self.every.steps(tokens_per_step)

        def multiplier(step: int) -> float:
            fallen: float = self.factor ** (step // every)
            return fallen

        return multiplier
