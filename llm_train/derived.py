"""Computes every number that follows from the settings, once and before anything starts.

The command line makes one ``Derived``, prints it, and hands it to the task, the data and the
callbacks, so that none of them repeats the arithmetic.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from llm_train.errors import ConfigError
from llm_train.units import Batch, Duration, SequenceRamp

Sizes = Sequence[tuple[int, int]]
"""The first step and the samples per step of each batch that a run has had, as checkpoints keep."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Optimizer steps with one global batch.

    Attributes:
        first_step: steps done before.
        first_sample: samples trained on before.
        samples_per_step: samples of each step over all ranks.
        tokens_per_step: target tokens of each step.
        accumulation: micro-batches of each step.
        learning_rate_factor: the factor that batch scaling applies to the configured learning rate.
        schedule_steps: length of a run with this batch from its beginning.
    """

    first_step: int
    first_sample: int
    samples_per_step: int
    tokens_per_step: int
    accumulation: int
    learning_rate_factor: float
    schedule_steps: int

    def samples(self, step: int) -> int:
        """Samples trained on when ``step`` steps are done, at most at the end of this stage."""
        return self.first_sample + (step - self.first_step) * self.samples_per_step


@dataclass(frozen=True, kw_only=True)
class Derived:
    """The derived numbers of a run.

    Attributes:
        seed: seed of weights, data order and dropout.
        ranks: processes, each with a device of its own.
        data_ranks: groups of ranks, each of which reads its own data; fewer than ranks only under
            tensor parallelism.
        sequence: positions per sample.
        per_device: samples per micro-batch.
        accumulation: micro-batches per optimizer step, after the ramp if there is one.
        tokens_per_step: target tokens per optimizer step over all ranks, after the ramp.
        samples_per_step: samples per optimizer step over all ranks, after the ramp.
        total_steps: optimizer steps of the run.
        total_tokens: target tokens of the run.
        validate_every: optimizer steps between validations; 0 validates at the end only.
        log_every: optimizer steps between log points.
        learning_rate_factor: the factor that batch scaling applies to the configured learning rate
            after the ramp.
        stages: the batches of the run, in order; one where the batch never changes.
        sequence_ramp: shorter sequences at the beginning, if any.
    """

    seed: int
    ranks: int
    data_ranks: int
    sequence: int
    per_device: int
    accumulation: int
    tokens_per_step: int
    samples_per_step: int
    total_steps: int
    total_tokens: int
    validate_every: int
    log_every: int
    learning_rate_factor: float
    stages: tuple[Stage, ...]
    sequence_ramp: SequenceRamp

    @classmethod
    def of(
        cls,
        *,
        seed: int,
        batch: Batch,
        budget: Duration,
        validate_every: Duration,
        log_every: int,
        ranks: int,
        tensor: int = 1,
        before: Sizes = (),
        step: int = 0,
    ) -> Derived:
        """Computes the numbers; each group of ``tensor`` ranks works on the same samples.

        Args:
            seed: of the run.
            batch: the global batch.
            budget: length of the run, from its beginning.
            validate_every: distance between validations.
            log_every: steps between log points.
            ranks: processes.
            tensor: ranks that work on the same samples.
            before: the batches of the steps that are done.
            step: how many are done.

        Raises:
            ConfigError: if the batch does not divide, or a duration is empty.
        """
        data_ranks = ranks // tensor
        accumulation = batch.accumulation(data_ranks)
        stages, total_steps = _stages(batch, budget, data_ranks, before, step)
        if total_steps < 1:
            raise ConfigError(f"budget={budget} is no training at all; give at least 1 steps")
        if log_every < 1:
            raise ConfigError(
                f"trainer.log_every_n_steps={log_every} must be at least 1: logging cannot be "
                "switched off"
            )
        return cls(
            seed=seed,
            ranks=ranks,
            data_ranks=data_ranks,
            sequence=batch.sequence,
            per_device=batch.per_device,
            accumulation=accumulation,
            tokens_per_step=batch.tokens,
            samples_per_step=batch.samples,
            total_steps=total_steps,
            total_tokens=stages[-1].samples(total_steps) * batch.sequence,
            validate_every=validate_every.steps(batch.tokens),
            log_every=log_every,
            learning_rate_factor=batch.scaling.factor(batch.tokens),
            stages=stages,
            sequence_ramp=batch.sequence_ramp,
        )

    def stage(self, step: int) -> Stage:
        """The stage of the step that comes after ``step`` steps."""
        return next(stage for stage in reversed(self.stages) if stage.first_step <= step)

    def samples(self, step: int) -> int:
        """Samples that ``step`` steps train on, over all ranks."""
        return self.stage(step).samples(step)

    def tokens(self, step: int) -> int:
        """Target tokens that ``step`` steps train on, over all ranks."""
        return self.samples(step) * self.sequence

    def positions(self, step: int) -> int:
        """Positions per sequence of the step that comes after ``step`` steps."""
        return self.sequence_ramp.positions(self.sequence, self.tokens(step))

    def lengths(self) -> dict[int, int]:
        """Target tokens of the run by positions per sequence, in order."""
        found, step = dict[int, int](), 0
        while step < self.total_steps:
            now = self.positions(step)
            steps = range(step, self.total_steps)
            end = step + bisect_right(steps, now, key=self.positions)
            found[now] = self.tokens(end) - self.tokens(step)
            step = end
        return found

    def schedule_step(self, step: int) -> int:
        """Where a schedule of ``stage(step).schedule_steps`` steps is: as many tokens into it.

        Where the batch changes, the learning rate goes by tokens: each step has that of a run with
        its batch from the beginning. With a budget in steps it goes by steps.
        """
        if all(stage.schedule_steps == self.total_steps for stage in self.stages):
            return step
        stage = self.stage(step)
        return stage.samples(step) // stage.samples_per_step

    def sizes(self, step: int) -> list[tuple[int, int]]:
        """The batches of the first ``step`` steps."""
        return [(s.first_step, s.samples_per_step) for s in self.stages if s.first_step < step]


def _stages(
    batch: Batch, budget: Duration, data_ranks: int, before: Sizes, step: int
) -> tuple[tuple[Stage, ...], int]:
    """All stages, and the steps in all."""
    if batch.ramp.tokens and budget.unit == "steps":
        raise ConfigError(
            f"budget={budget} is in steps, which batch.ramp makes of different size; write tokens"
        )
    found: list[Stage] = []

    def add(first_step: int, size: int) -> None:
        if found and found[-1].samples_per_step == size:
            return
        tokens = size * batch.sequence
        found.append(
            Stage(
                first_step=first_step,
                first_sample=found[-1].samples(first_step) if found else 0,
                samples_per_step=size,
                tokens_per_step=tokens,
                accumulation=size // (data_ranks * batch.per_device),
                learning_rate_factor=batch.scaling.factor(tokens),
                schedule_steps=budget.steps(tokens),
            )
        )

    for first_step, size in before:
        add(first_step, size)
    for size, until in batch.stages():
        sample = found[-1].samples(step) if found else 0
        if until is not None and until <= sample:
            continue
        add(step, size)
        if budget.unit == "steps":
            return tuple(found), budget.count
        end = math.ceil(budget.count / batch.sequence)
        if until is None or end <= until:
            break
        step += math.ceil((until - sample) / size)
    return tuple(found), step + max(0, math.ceil((end - sample) / size))
