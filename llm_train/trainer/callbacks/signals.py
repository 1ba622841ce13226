"""Signals end a run at the next step or validation batch, on all ranks alike; then it saves.

Lightning's own handler runs a collective inside the signal and its loop broadcasts and reads a
tensor before every micro-batch. Both are replaced: ``runtime/watch`` hears signals and agrees with
the other ranks, and this callback passes the boundaries at which a run can end.
"""

from collections.abc import Mapping

import lightning.pytorch as pl

from llm_train.run_state import task_of
from llm_train.runtime.watch.verdict import STEP, VALIDATION
from llm_train.trainer.callbacks.base import EachStep


class GracefulStop(EachStep):
    """Turns SIGINT, SIGTERM or SIGUSR1 into an orderly end; a later second one acts at once."""

    def __init__(self) -> None:
        self._validation_due = False  # it was broken off
        self._repeats = False  # the one that was broken off before
        self._first_step = 0

    def state_dict(self) -> dict[str, bool]:
        """A run that continues repeats the validation that was broken off."""
        return {"validation_due": self._validation_due or self._repeats}

    def load_state_dict(self, state_dict: Mapping[str, bool]) -> None:
        """Undoes ``state_dict``."""
        self._repeats = state_dict["validation_due"]

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Removes Lightning's handlers and its broadcast per micro-batch."""
        connector, loop = trainer._signal_connector, trainer.fit_loop.epoch_loop
        connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on there is something to save; repeats a validation that was broken off."""
        task_of(pl_module).run_state.watch.begin()
        self._first_step = trainer.global_step
        self._repeat(trainer)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Of a run that was done but for its last validation, nothing else is left."""
        self._repeat(trainer)

    def _repeat(self, trainer: pl.Trainer) -> None:
        if self._repeats:
            self._repeats = False
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Says that this rank gets on; the first step may compile."""
        step = trainer.global_step
        phase = "the first step" if step == self._first_step else STEP
        task_of(pl_module).run_state.watch.mark(phase, step)

    def on_step_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ends training after this step, without the validation that Lightning would add."""
        task = task_of(pl_module)
        # The last step ends training anyhow, and a boundary of its validation may be the next.
        if task.run_state.watch.boundary() and trainer.global_step < task.derived.total_steps:
            task.run_state.stop_signal = task.run_state.watch.number
            trainer.should_stop = True
            trainer.limit_val_batches = 0

    def on_validation_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Breaks the validation off.

        Raises:
            StopIteration: Lightning's loop ends as if this batch did not exist.
        """
        run = task_of(pl_module).run_state
        run.watch.mark(
            VALIDATION if batch_idx else "the start of a validation", trainer.global_step
        )
        if trainer.state.fn == "fit" and run.watch.boundary():
            run.stop_signal = run.watch.number
            trainer.should_stop = self._validation_due = True
            # Lightning's word for a validation whose results are nobody's business.
            trainer.sanity_checking = True
            raise StopIteration

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What follows is no validation: saving, or the end."""
        task_of(pl_module).run_state.watch.mark("the end of a validation", trainer.global_step)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The last save follows."""
        task_of(pl_module).run_state.watch.mark("the end", trainer.global_step)
