"""Saves and restores a run between two optimizer steps; what is saved stands in ``content``.

A checkpoint of step N is written when step N is over with its logging and validation: at the start
of the next micro-batch, or at the end of training. So nothing of step N needs repeating after a
resume, and no gradients exist then. Lightning's own checkpoint path is not used: it holds no RNG
state, loses the position in the data, and overwrites sharded files in place.
"""

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import Tensor

from llm_train.checkpoint import callback_state, content, group_state, manifest
from llm_train.checkpoint.agreement import Ranks
from llm_train.checkpoint.compatibility import load_weights, require_loadable, require_same_run
from llm_train.checkpoint.rank_state import Snapshot
from llm_train.checkpoint.remote import Remote
from llm_train.checkpoint.store import CheckpointStore, Found
from llm_train.checkpoint.writer import Writer
from llm_train.data.module import data_of
from llm_train.errors import CheckpointError, LLMTrainError
from llm_train.model.optimizer.groups import Group
from llm_train.run_state import RunState, task_of
from llm_train.runtime.random_state import set_random_state

_log = logging.getLogger(__name__)
_UPLOAD_SECONDS = 600.0  # the last upload may take; what is not complete by then is absent there
_PATIENCE_SECONDS = 60.0  # of a run that ends in an error, for the save that is under way


@dataclass(kw_only=True, eq=False)  # hashed by identity, as Lightning's callbacks are
class Checkpoints(pl.Callback):
    """Writes a checkpoint every so many steps and at the end, and restores one at the start.

    Attributes:
        writer: writes them.
        every: optimizer steps between checkpoints; 0 saves at the end only.
        resume: auto, a path, or "" to start at step 0.
        announce: called on rank 0 with what was found, before the network is built.
        follow: called on all ranks after it with the metadata of the checkpoint that was found.
        first_save: called on rank 0 with the step, once a run that began at 0 has a checkpoint.
        remote: where checkpoints go as well; None: nowhere.
        asynchronous: whether training goes on while a checkpoint is written.
        compare_replicas: whether ranks compare their copies before each save.
        resume_from: the checkpoint that was found.
    """

    writer: Writer
    every: int
    resume: str
    announce: Callable[[Found], None]
    follow: Callable[[Mapping[str, Any]], None]
    first_save: Callable[[int], None]
    compare_replicas: bool = True
    remote: Remote | None = None
    asynchronous: bool = False
    resume_from: Path | None = None
    _told: bool = False  # of the first save
    _snapshot: Snapshot | None = None  # where saving is asynchronous
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
        self._tell_first(trainer)
        step = trainer.global_step
        boundary = batch_idx % trainer.accumulate_grad_batches == 0
        if self.every and boundary and step and step % self.every == 0:
            self.save(trainer, task_of(pl_module).run_state)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves after the last step, whether the budget is used up or the run was stopped early.

        The one epoch ends when training does, and before ``on_train_end``, in which Lightning's
        ``WeightAveraging`` puts its average in the place of the weights.
        """
        self.save(trainer, task_of(pl_module).run_state, last=True)

    def save(self, trainer: pl.Trainer, run: RunState, *, last: bool = False) -> None:
        """Saves the current step, if it is not saved yet; collective over ranks.

        Only the last checkpoint of a run must succeed, and is waited for.
        """
        run.watch.mark("a save", trainer.global_step)
        run.flush()  # a loss that is not finite must be known before anything is saved
        with run.stopwatch.paused("saving"):
            self.writer.settle()
            if trainer.global_step != self.writer.saved:
                _require_finite(trainer, run)
                if self.compare_replicas:
                    content.keeper(trainer).require_equal_replicas()
                self._save(trainer, last)
        self._tell_first(trainer)

    def _save(self, trainer: pl.Trainer, last: bool) -> None:
        snapshot = None if last else self._snapshot
        found = content.take(trainer, self._built, snapshot)
        if last:
            self.writer.write(found)
        elif snapshot is None:
            self.writer.try_to_write(found)
        else:
            self.writer.begin(found)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Waits for the last upload; the other ranks wait in their last collective."""
        if self.remote is not None:
            self.remote.finish(_UPLOAD_SECONDS)

    def _tell_first(self, trainer: pl.Trainer) -> None:
        if self.writer.saved and not self._told:
            self._told = True
            if trainer.is_global_zero:
                self.first_save(self.writer.saved)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Completes the save that is under way: it may be the last good one, or the first."""
        if not isinstance(exception, KeyboardInterrupt):  # somebody who asks twice will not wait
            try:
                self.writer.settle(_PATIENCE_SECONDS)
            except Exception as error:
                _log.warning("%s", error)

    # --- resuming ---------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Chooses the checkpoint to continue from, once for all ranks, before a network exists."""
        self.resume_from = Ranks().on_main(lambda: self._find(trainer))
        if self.resume_from is not None:
            self.follow(manifest.read(self.resume_from).metadata)

    def _find(self, trainer: pl.Trainer) -> Path | None:
        store = self.writer.store
        store.clean()  # rank 0, before any save: what is half done belongs to a killed process
        if self.remote is not None and self.resume == "auto":
            self.remote.bring_newest()
        found = store.resolve(self.resume) if self.resume else Found(None)
        own = found.path is not None and os.path.dirname(os.path.abspath(found.path))
        if self.remote is not None and self.resume != "auto" and own != os.path.abspath(store.root):
            self.remote.require_free()
        if found.path is not None:
            metadata = manifest.read(found.path).metadata
            require_loadable(found.path, metadata, content.keeper(trainer), trainer.world_size)
            require_same_run(found.path, metadata, self.writer.metadata)
        self.announce(found)
        return found.path

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restores all but the random state, which starting the loaders would still change."""
        self._built = group_state.values(trainer.optimizers[0].param_groups)
        if self.asynchronous:
            self._snapshot = Snapshot()
            if dist.is_initialized():
                timeout = content.keeper(trainer).timeout
                self.writer.ranks = Ranks(dist.new_group(backend="gloo", timeout=timeout))
        if self.resume_from is not None:
            self._random_state = content.restore(trainer, self.resume_from, self._built)
            self.writer.saved, self._told = trainer.global_step, True
            if self.remote is not None and trainer.is_global_zero:
                self.remote.offer(self.resume_from)  # its upload may have failed

    def earlier(self, step: int, before: int) -> Path:
        """The checkpoint to go back to from ``step``, the same on all ranks (``back_from``)."""
        self.writer.settle()
        return Ranks().on_main(lambda: back_from(self.writer.store, step, before))

    def restore(self, trainer: pl.Trainer, path: Path, batch: Tensor, *, consumed: int = 0) -> None:
        """Takes a run that is under way back to a checkpoint of its own; collective over ranks.

        To be called where this callback saves: in ``on_train_batch_start``, before the first
        micro-batch of an optimizer step. Weights, optimizer, its groups, sums, callbacks, random
        state, the position in the data and the loop's counters are what they were then.

        Args:
            trainer: that trains.
            path: of the checkpoint, complete; of another number of ranks, the random state stays.
            batch: the micro-batch that was fetched; that of the checkpoint's next step replaces it.
            consumed: the sample to go on with, unknown to any checkpoint; 0: as this one has it.
        """
        run = task_of(trainer.lightning_module).run_state
        run.flush()
        with run.stopwatch.paused("rollback"):
            self.writer.settle()
            micro_batches = trainer.accumulate_grad_batches
            random = content.restore(trainer, path, self._built)
            if micro_batches % trainer.accumulate_grad_batches:
                raise LLMTrainError(
                    f"going back to {path} would cross a change of batch.tokens, in the middle of "
                    "a step; resume from it instead (--resume PATH)"
                )
            data = data_of(trainer)
            data.consumed = consumed or data.consumed
            content.restart_data(trainer, batch)
            if random is not None:  # of as many ranks
                set_random_state(random, trainer.strategy.root_device)
        self.writer.saved = 0 if consumed else trainer.global_step


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


def back_from(store: CheckpointStore, step: int, before: int) -> Path:
    """The newest complete checkpoint at least ``before`` steps before ``step``, else the first.

    What a run that went back once has left behind is passed over: it was committed earlier than a
    checkpoint of an earlier step.

    Raises:
        CheckpointError: there is none.
    """
    found: Path | None = None
    latest = step - before
    for saved, path in store.committed():
        if saved < step and not manifest.problems(path):
            found, step = path, saved
            if step <= latest:
                break
    if found is None:
        raise CheckpointError(
            f"{store.root} holds no checkpoint of before step {step} to go back to; save more "
            "often: checkpoint.every"
        )
    return found
