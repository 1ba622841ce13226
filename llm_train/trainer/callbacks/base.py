"""What our callbacks have in common: they act between optimizer steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol, runtime_checkable

import lightning.pytorch as pl

from llm_train.run_state import Trainee, trainee


class EachStep(pl.Callback, ABC):
    """A callback with a hook that Lightning lacks: the end of an optimizer step."""

    @abstractmethod
    def on_step_end(self, trainer: pl.Trainer, task: Trainee) -> None:
        """Called when the update of step ``trainer.global_step`` is done."""

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Passes over the micro-batches that end no step."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.on_step_end(trainer, trainee(pl_module))


@runtime_checkable
class _LogsEvents(Protocol):
    """A logger that keeps what happened, not only numbers."""

    def log_event(self, name: str, step: int, **values: object) -> None: ...


def log_event(trainer: pl.Trainer, name: str, **values: object) -> None:
    """Records what happened at this step, where a logger keeps such records."""
    for logger in trainer.loggers:
        if isinstance(logger, _LogsEvents):
            logger.log_event(name, trainer.global_step, **values)
