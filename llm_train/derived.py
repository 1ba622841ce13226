"""Computes every number that follows from the settings, once and before anything starts.

The command line makes one ``Derived``, prints it, and hands it to the task, the data and the
callbacks, so that none of them repeats the arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass

from llm_train.errors import ConfigError
from llm_train.units import Batch, Duration


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
        accumulation: micro-batches per optimizer step.
        tokens_per_step: target tokens per optimizer step over all ranks.
        samples_per_step: samples per optimizer step over all ranks.
        total_steps: optimizer steps of the run.
        total_tokens: target tokens of the run.
        validate_every: optimizer steps between validations; 0 validates at the end only.
        log_every: optimizer steps between log points.
        learning_rate_factor: the factor that batch scaling applies to the configured learning rate.
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
    ) -> Derived:
        """Computes the numbers; each group of ``tensor`` ranks works on the same samples.

        Raises:
            ConfigError: if the batch does not divide, or a duration is empty.
        """
        data_ranks = ranks // tensor
        accumulation = batch.accumulation(data_ranks)
        total_steps = budget.steps(batch.tokens)
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
            total_tokens=total_steps * batch.tokens,
            validate_every=validate_every.steps(batch.tokens),
            log_every=log_every,
            learning_rate_factor=batch.scaling.factor(batch.tokens),
        )
