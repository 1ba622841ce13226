"""Saves and restores a run between two optimizer steps, everything included.

A checkpoint of step N is written when step N is over with its logging and validation: at the start
of the next micro-batch, or at the end of training. So nothing of step N needs repeating after a
resume, and no gradient is under way. Lightning's own checkpoint path is not used: it holds no RNG
state, loses the position in the data, and overwrites sharded files in place.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer import call

from llm_train.checkpoint.random_state import rank_state, set_random_state
from llm_train.checkpoint.store import CheckpointStore, Found
from llm_train.errors import CheckpointError, LLMTrainError

T = TypeVar("T")
# What a position in the data and a number of steps depend on, and the keys that set it.
_FIXED = {
    "seed": "seed",
    "sequence": "batch.sequence",
    "samples_per_step": "batch.tokens / batch.sequence",
}


class Checkpoints(pl.Callback):
    """Writes a checkpoint every so many steps and at the end, and restores one at the start.

    Args:
        store: where checkpoints go.
        every: optimizer steps between checkpoints; 0 saves at the end only.
        facts: plain values to keep in each manifest.
        files: text files to keep in each checkpoint, by name.
        resume: auto, a path, or "" to start at step 0.
        announce: called on rank 0 with what was found, before the network is built.
    """

    def __init__(
        self,
        store: CheckpointStore,
        *,
        every: int,
        facts: Mapping[str, Any],
        files: Mapping[str, str],
        resume: str,
        announce: Callable[[Found], None],
    ) -> None:
        self.store = store
        self.every = every
        self.facts = dict(facts)
        self.files = dict(files)
        self.resume = resume
        self.announce = announce
        self.resume_from: Path | None = None
        self.last_saved = -1
        self._random_state: dict[str, Any] | None = None

    # --- saving -----------------------------------------------------------------------------------

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Restores the random state before the first batch, and saves between two steps."""
        if self._random_state is not None:
            set_random_state(self._random_state)
            self._random_state = None
        step = trainer.global_step
        boundary = batch_idx % trainer.accumulate_grad_batches == 0
        if self.every and boundary and step and step % self.every == 0 and step != self.last_saved:
            self.save(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Saves the last step, reached or cut short by a signal."""
        if trainer.global_step and trainer.global_step != self.last_saved:
            self.save(trainer, pl_module)

    def save(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Stages, fills and commits the checkpoint of the current step; collective over ranks."""
        pl_module.settle()  # a loss that is not finite must be known before anything is saved
        with pl_module.stopwatch.paused():
            step = trainer.global_step
            _require_finite(trainer, pl_module)
            strategy: Any = trainer.strategy
            stage = Path(_on_main(trainer, lambda: self.store.stage(step)))
            (stage / "state").mkdir(exist_ok=True)
            strategy.barrier()
            strategy.save_state(stage / "state")
            torch.save(rank_state(pl_module), stage / _rank_file(trainer.global_rank))
            strategy.barrier()
            _on_main(trainer, lambda: self._finish(trainer, stage))
            self.last_saved = step

    def _finish(self, trainer: pl.Trainer, stage: Path) -> None:
        torch.save({"callbacks": call._call_callbacks_state_dict(trainer)}, stage / "callbacks.pt")
        _require_plain(stage / "callbacks.pt")
        for name, text in self.files.items():
            (stage / name).write_text(text, encoding="utf-8")
        self.store.commit(trainer.global_step, {**self.facts, **self._position(trainer)})

    def _position(self, trainer: Any) -> dict[str, Any]:
        data: Any = trainer.datamodule
        strategy: Any = trainer.strategy
        done = trainer.global_step - data.steps_done
        consumed = data.consumed + done * self.facts["samples_per_step"]
        return {
            "step": trainer.global_step,
            "data": {**data.state_dict(), "consumed": consumed},
            "tokens": consumed * self.facts["sequence"],
            "world_size": trainer.world_size,
            "strategy": type(strategy).__name__,
            "state_format": strategy.state_format,
        }

    # --- resuming ---------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Chooses the checkpoint to continue from, once for all ranks, before anything is built."""
        found = _on_main(trainer, lambda: self._find(trainer))
        self.resume_from = found

    def _find(self, trainer: pl.Trainer) -> Path | None:
        self.store.clean()
        found = self.store.resolve(self.resume) if self.resume else Found(None)
        if found.path is not None:
            facts = self.store.read_manifest(found.path).facts
            require_loadable(found.path, facts, trainer.strategy, trainer.world_size)
            require_same_run(found.path, facts, self.facts)
        self.announce(found)
        return found.path

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Restores everything but the random state, which the loaders' start-up would disturb."""
        if self.resume_from is None:
            return
        facts = self.store.read_manifest(self.resume_from).facts
        strategy: Any = trainer.strategy
        strategy.load_state(self.resume_from / "state", with_optimizer=True)
        data: Any = trainer.datamodule
        data.restore(facts["data"], steps_done=facts["step"])
        _set_loop_position(trainer, facts["step"])
        shared = torch.load(self.resume_from / "callbacks.pt", weights_only=True)
        shared["pytorch-lightning_version"] = version("lightning")
        call._call_callbacks_load_state_dict(trainer, shared)
        self._restore_rank(trainer, pl_module, facts["world_size"])
        self.last_saved = facts["step"]

    def _restore_rank(self, trainer: pl.Trainer, pl_module: Any, saved_ranks: int) -> None:
        assert self.resume_from is not None
        rank = trainer.global_rank
        if saved_ranks == trainer.world_size:
            own = torch.load(self.resume_from / _rank_file(rank), weights_only=True)
            pl_module.sums.copy_(own["sums"])
            self._random_state = own["random"]
            return
        # Another number of ranks: the sums of the open interval belong to nobody in particular.
        pl_module.sums.zero_()
        if rank == 0:
            for other in range(saved_ranks):
                path = self.resume_from / _rank_file(other)
                pl_module.sums += torch.load(path, weights_only=True)["sums"].to(pl_module.sums)


def _require_plain(path: Path) -> None:
    """A state that only a pickle can hold would be found out when it is too late."""
    try:
        torch.load(path, weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            "trainer.callbacks: the state_dict of a callback holds objects that cannot be loaded "
            f"safely ({str(error).splitlines()[0]}); let it return plain values and tensors"
        ) from error


def _require_finite(trainer: pl.Trainer, pl_module: Any) -> None:
    """Refuses, on all ranks alike, to save a run that has gone wrong on any of them."""
    values = [pl_module.sums]
    if pl_module.gradient_norm is not None:
        values.append(pl_module.gradient_norm.detach().reshape(1).to(pl_module.sums))
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
    outcome: tuple[Any, str] = (None, "")
    if trainer.is_global_zero:
        try:
            outcome = (action(), "")
        except Exception as error:
            outcome = (None, str(error) or type(error).__name__)
    result, failure = trainer.strategy.broadcast(outcome)
    if failure:
        raise CheckpointError(failure)
    value: T = result
    return value


def require_same_run(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuses changes after which the position of the run would mean something else.

    Raises:
        CheckpointError: another seed, sequence, global batch or optimizer.
    """
    for key, name in _FIXED.items():
        if before[key] != now[key]:
            raise CheckpointError(
                f"{name} is {now[key]} but {path} was trained with {before[key]}, so its position "
                "would mean other samples or steps; put the old value back, or start a new run"
            )
    if before["optimizer"] != now["optimizer"]:
        raise CheckpointError(
            f"model.optimizer is {now['optimizer']} but {path} holds the state of "
            f"{before['optimizer']}; put the old one back, or start a new run"
        )


def require_loadable(path: Path, facts: Mapping[str, Any], strategy: Any, ranks: int) -> None:
    """Refuses, before anything is read, a checkpoint that ``strategy`` cannot load.

    Args:
        path: the checkpoint.
        facts: what its manifest says.
        strategy: what is to load it.
        ranks: that are to load it.

    Raises:
        CheckpointError: another file format, or one for another number of ranks.
    """
    require_weights(path, facts)
    written = facts["state_format"]
    if written not in (strategy.state_format, *strategy.also_reads):
        raise CheckpointError(
            f"{path} was written by {facts['strategy']} in {written} format, which "
            f"{type(strategy).__name__} cannot read; resume with "
            f"trainer.strategy={facts['strategy']}"
        )
    if written == "replicas" and facts["world_size"] != ranks:
        raise CheckpointError(
            f"{path} holds {facts['world_size']} replicas of {facts['strategy']} with an optimizer "
            f"state each, which {ranks} ranks cannot take over; resume on as many"
        )


def require_weights(path: Path, facts: Mapping[str, Any]) -> None:
    """Refuses a checkpoint out of which not even the weights can be read.

    Raises:
        CheckpointError: an earlier version wrote it through DeepSpeed.
    """
    if facts["state_format"] == "deepspeed":
        raise CheckpointError(
            f"{path} holds DeepSpeed's own files, which earlier versions wrote and this one does "
            "not read; finish that run with the version that began it, or start a new run"
        )


def _set_loop_position(trainer: pl.Trainer, step: int) -> None:
    """Makes Lightning's progress counters say that ``step`` optimizer steps are done."""
    state = trainer.fit_loop.state_dict()
    micro = step * trainer.accumulate_grad_batches
    batches = {"ready": micro, "started": micro, "processed": micro, "completed": micro}
    epoch = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    for scope in ("current", "total"):
        state["epoch_loop.batch_progress"][scope].update(batches)
        state["epoch_progress"][scope].update(epoch)
        optimizer = state["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
        optimizer["step"][scope].update(ready=step, completed=step)
    state["epoch_loop.state_dict"]["_batches_that_stepped"] = step
    trainer.fit_loop.load_state_dict(state)


def _rank_file(rank: int) -> str:
    return f"rank-{rank:05d}.pt"
