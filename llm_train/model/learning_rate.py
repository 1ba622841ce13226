"""The learning rate of each parameter group: configured rate x batch rule x schedule.

It is set from the number of steps before each update, so that there is nothing to save. Where the
global batch changes, both factors follow it.
"""

from collections.abc import Sequence

from llm_train.derived import Derived, Stage
from llm_train.model.optimizer.groups import Group, set_learning_rates
from llm_train.model.schedule.base import Multiplier, Schedule


class LearningRates:
    """Knows what each group was configured with.

    Args:
        schedule: the factor over the run.
        derived: the numbers of the run.
        groups: of the optimizer, as it was built.
    """

    def __init__(self, schedule: Schedule, derived: Derived, groups: Sequence[Group]) -> None:
        self._schedule = schedule
        self._derived = derived
        self._configured = [float(group["lr"]) for group in groups]
        self._enter(derived.stages[0])

    def _enter(self, stage: Stage) -> None:
        self._stage = stage
        self._peaks = [rate * stage.learning_rate_factor for rate in self._configured]
        self._multiplier = _multiplier(self._schedule, stage)

    def set(self, groups: Sequence[Group], step: int) -> None:
        """Gives each group its rate for the update after ``step`` steps."""
        if (stage := self._derived.stage(step)) is not self._stage:
            self._enter(stage)
        factor = self._multiplier(self._derived.schedule_step(step))
        set_learning_rates(groups, self._peaks, factor)


def schedule_factor(schedule: Schedule, derived: Derived, step: int) -> float:
    """The factor on the peak, after batch scaling, of the update after ``step`` others."""
    return _multiplier(schedule, derived.stage(step))(derived.schedule_step(step))


def _multiplier(schedule: Schedule, stage: Stage) -> Multiplier:
    return schedule.build(total_steps=stage.schedule_steps, tokens_per_step=stage.tokens_per_step)
