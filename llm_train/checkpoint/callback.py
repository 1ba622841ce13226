"""Saves and restores a run between two optimizer steps; what is saved stands in ``content``.

A checkpoint of step N is written when step N is over with its logging and validation: at the start
of the next micro-batch, or at the end of training. So nothing of step N needs repeating after a
resume, and no gradients exist then. Lightning's own checkpoint path is not used: it holds no RNG
state, loses the position in the data, and overwrites sharded files in place.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import lightning.pytorch as pl
import torch
from torch import Tensor

from llm_train.checkpoint import callback_state, content, group_state, manifest
from llm_train.checkpoint.compatibility import load_weights, require_loadable, require_same_run
from llm_train.checkpoint.store import CheckpointStore, Found, SaveFailed
from llm_train.errors import CheckpointError, LLMTrainError
from llm_train.model.optimizer.groups import Group
from llm_train.run_state import RunState, task_of
from llm_train.runtime.random_state import set_random_state

T = TypeVar("T")

_log = logging.getLogger(__name__)


@dataclass(kw_only=True, eq=False)  # hashed by identity, as Lightning's callbacks are
class Checkpoints(pl.Callback):
    """Writes a checkpoint every so many steps and at the end, and restores one at the start.

    Attributes:
        store: where checkpoints go.
        every: optimizer steps between checkpoints; 0 saves at the end only.
        metadata: plain values to keep in each manifest.
        files: text files to keep in each checkpoint, by name.
        resume: auto, a path, or "" to start at step 0.
        announce: called on rank 0 with what was found, before the network is built.
        first_save: called on rank 0 with the step, once a run that began at 0 has a checkpoint.
        compare_replicas: whether ranks compare their copies before each save.
        resume_from: the checkpoint that was found.
        last_saved: the step of the last checkpoint, read or written.
    """

    store: CheckpointStore
    every: int
    metadata: Mapping[str, Any]
    files: Mapping[str, str]
    resume: str
    announce: Callable[[Found], None]
    first_save: Callable[[int], None]
    compare_replicas: bool = True
    resume_from: Path | None = None
    last_saved: int = 0
    _random_state: dict[str, Any] | None = None
    _built: list[Group] = field(default_factory=list)  # what the optimizer's groups began with

    # --- saving -----------------------------------------------------------------------------------

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Restores the random state before the first batch, and saves between two steps."""
        if self._random_state is not None:
            set_random_state(self._random_state, trainer.strategy.root_device)
            self._random_state = None
        step = trainer.global_step
        boundary = batch_idx % trainer.accumulate_grad_batches == 0
        if self.every and boundary and step % self.every == 0 and step != self.last_saved:
            self.save(trainer, task_of(pl_module).run_state)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves after the last step, whether the budget is used up or the run was stopped early.

        The one epoch ends when training does, and before ``on_train_end``, in which Lightning's
        ``WeightAveraging`` puts its average in the place of the weights.
        """
        if trainer.global_step != self.last_saved:
            self.save(trainer, task_of(pl_module).run_state, last=True)

    def save(self, trainer: pl.Trainer, run: RunState, *, last: bool = False) -> None:
        """Saves the current step; collective over ranks.

        A disk may be full for an hour: only the last checkpoint of a run must succeed.
        """
        run.flush()  # a loss that is not finite must be known before anything is saved
        with run.stopwatch.paused("saving"):
            _require_finite(trainer, run)
            if self.compare_replicas:
                content.keeper(trainer).require_equal_replicas()
            try:
                self._write(trainer, run, trainer.global_step)
            except SaveFailed as error:
                if last:
                    raise
                _log.warning("%s; training goes on, and the next save tries again", error)

    def _write(self, trainer: pl.Trainer, run: RunState, step: int) -> None:
        """Stages, fills and commits a checkpoint; all ranks raise if one of them cannot."""
        # Here, because a verb that saves nothing can do without what it imports.
        from torch.distributed.checkpoint.api import CheckpointException

        # Nobody writes into the stage before rank 0 has emptied it.
        stage = Path(_on_main(trainer, lambda: self._stage(step)))
        failure: BaseException | None = None
        try:
            kept = content.write(trainer, stage, self._built)
        except LLMTrainError as error:  # of all ranks
            if not isinstance(error.__cause__, CheckpointException):  # no fault of the disk
                shutil.rmtree(stage, ignore_errors=True)
                raise CheckpointError(f"cannot save step {step}: {error}") from error
            failure = error
        # torch's writers raise RuntimeError for a short write; DCP's is the same on all ranks.
        except (OSError, RuntimeError, CheckpointException) as error:
            failure = error
        # No rank goes on before all have written, since the manifest lists what they wrote.
        failed = torch.tensor(float(failure is not None), device=trainer.strategy.root_device)
        if int(trainer.strategy.reduce(failed, reduce_op="sum")):
            raise self.store.failure(step, failure) from failure
        _on_main(trainer, lambda: self._finish(trainer, stage, kept))
        self.last_saved = step

    def _stage(self, step: int) -> Path:
        stage = self.store.stage(step)
        with self.store.surfaced(step):
            (stage / "state").mkdir()
        return stage

    def _finish(self, trainer: pl.Trainer, stage: Path, kept: dict[str, Any]) -> None:
        step = trainer.global_step
        with self.store.surfaced(step):
            content.finish(stage, kept, self.files)
        where = content.position(trainer, self.metadata["samples_per_step"])
        self.store.commit(step, {**self.metadata, **where})
        if not self.last_saved:
            self.first_save(step)

    # --- resuming ---------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Chooses the checkpoint to continue from, once for all ranks, before a network exists."""
        self.resume_from = _on_main(trainer, lambda: self._find(trainer))

    def _find(self, trainer: pl.Trainer) -> Path | None:
        self.store.clean()  # rank 0, before any save: what is half done belongs to a killed process
        found = self.store.resolve(self.resume) if self.resume else Found(None)
        if found.path is not None:
            metadata = manifest.read(found.path).metadata
            require_loadable(found.path, metadata, content.keeper(trainer), trainer.world_size)
            require_same_run(found.path, metadata, self.metadata)
        self.announce(found)
        return found.path

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restores all but the random state, which starting the loaders would still change."""
        self._built = group_state.values(trainer.optimizers[0].param_groups)
        path = self.resume_from
        if path is None:
            return
        self._random_state = content.restore(trainer, path, self._built)
        self.last_saved = trainer.global_step

    def restore(self, trainer: pl.Trainer, path: Path, batch: Tensor) -> None:
        """Takes a run that is under way back to a checkpoint of its own; collective over ranks.

        To be called where this callback saves: in ``on_train_batch_start``, before the first
        micro-batch of an optimizer step. Weights, optimizer, its groups, sums, callbacks, random
        state, the position in the data and the loop's counters are what they were then.

        Args:
            trainer: that trains.
            path: of the checkpoint, complete and of as many ranks.
            batch: the micro-batch that was fetched; that of the checkpoint's next step replaces it.
        """
        run = task_of(trainer.lightning_module).run_state
        run.flush()
        with run.stopwatch.paused():
            random = content.restore(trainer, path, self._built)
            content.restart_data(trainer, batch)
            assert random is not None, "a checkpoint of as many ranks holds the state of each"
            set_random_state(random, trainer.strategy.root_device)
        self.last_saved = trainer.global_step


@dataclass(eq=False)
class Restored(pl.Callback):
    """Loads the weights and the callbacks' state of a checkpoint before a validation.

    It must be the first callback: another one may swap the weights when the validation starts.

    Args:
        path: of the checkpoint.
    """

    path: Path

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Loads weights and callback state."""
        load_weights(self.path, task_of(pl_module).network)
        callback_state.restore(trainer, self.path)


def _require_finite(trainer: pl.Trainer, run: RunState) -> None:
    """Refuses, on all ranks alike, to save a run that has gone wrong on any of them."""
    values = [run.sums]
    if run.gradient_norm is not None:
        values.append(run.gradient_norm.detach().reshape(1).to(run.sums))
    wrong = (~torch.isfinite(torch.cat(values))).sum()
    if int(trainer.strategy.reduce(wrong, reduce_op="sum")):
        raise LLMTrainError(
            f"the loss or the gradient is not finite at step {trainer.global_step}; "
            "not saving over good checkpoints"
        )


def _on_main(trainer: pl.Trainer, action: Callable[[], T]) -> T:
    """Runs ``action`` on rank 0 and gives its result, or its failure, to every rank.

    A failure that only rank 0 knew of would leave the others waiting for it until the timeout.
    """
    result: T | None = None
    failure, kind = "", CheckpointError
    if trainer.is_global_zero:
        try:
            result = action()
        except Exception as error:
            failure = str(error) or type(error).__name__
            kind = SaveFailed if isinstance(error, SaveFailed) else CheckpointError
    result, failure, kind = trainer.strategy.broadcast((result, failure, kind))
    if failure:
        raise kind(failure)
    return cast(T, result)
