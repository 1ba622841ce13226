"""A schedule is a pure function of the step, so a checkpoint need not save anything of it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

from llm_train.context import Context, Part

Multiplier = Callable[[int], float]


class Schedule(Part, ABC):
    """The configuration of a schedule. Subclasses are frozen, keyword-only dataclasses."""

    def problems(self, context: Context) -> Iterator[str]:
        """Phases that do not fit into the run: ``build`` raises."""
        derived = context.derived
        self.build(total_steps=derived.total_steps, tokens_per_step=derived.tokens_per_step)
        yield from ()

    @abstractmethod
    def build(self, *, total_steps: int, tokens_per_step: int) -> Multiplier:
        """Resolves durations and returns the factor on the peak learning rate at each step.

        Args:
            total_steps: length of the run; the factor is asked for steps 0 .. total_steps - 1.
            tokens_per_step: converts durations in tokens into steps.

        Raises:
            ConfigError: if the phases do not fit into the run.
        """
