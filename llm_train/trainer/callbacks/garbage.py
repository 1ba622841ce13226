"""Takes Python's garbage collection out of the step.

A collection walks every object, a tenth of a second in a process that has torch loaded, whenever
allocation counts happen to say so, and on several ranks at different steps: each waits for the
slowest. Here what exists when training starts is set aside, and collections happen at fixed steps,
on all ranks at once.
"""

import gc

import lightning.pytorch as pl

from llm_train.trainer.callbacks.base import EachStep


class GarbageCollection(EachStep):
    """Collects every so many optimizer steps and after validations, never in between.

    Args:
        every: optimizer steps between collections.
    """

    def __init__(self, every: int = 1000) -> None:
        self.every = every
        self._was_enabled: bool | None = None  # known while training lasts

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Freezes what was built and switches automatic collection off."""
        self._was_enabled = gc.isenabled()
        gc.collect()
        gc.freeze()
        gc.disable()

    def on_step_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Collects young objects at fixed steps."""
        if trainer.global_step % self.every == 0:
            gc.collect(1)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Collects where time is not counted as training."""
        if self._was_enabled is not None:
            gc.collect(1)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Puts everything back."""
        if self._was_enabled is not None:
            gc.unfreeze()
        if self._was_enabled:
            gc.enable()
        self._was_enabled = None

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Puts everything back."""
        self.on_train_end(trainer, pl_module)
