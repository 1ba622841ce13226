"""What our callbacks have in common: they act between optimizer steps."""

from abc import ABC, abstractmethod

import lightning.pytorch as pl


class EachStep(pl.Callback, ABC):
    """A callback with a hook that Lightning lacks: the end of an optimizer step."""

    @abstractmethod
    def on_step_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
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
            self.on_step_end(trainer, pl_module)
