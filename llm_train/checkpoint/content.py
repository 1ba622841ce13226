"""What a checkpoint of a run holds besides the store's manifest, and how a run gets it back.

Every rank writes its part of weights and optimizer state, its random state, its sums and what the
optimizer keeps in groups. Rank 0 adds the callbacks' state, the position in the data, and the texts
that make a checkpoint usable without its run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.serialization import default_restore_location

from llm_train.checkpoint import callback_state, group_state, manifest
from llm_train.checkpoint.compatibility import KeepsState
from llm_train.data.module import TokenData
from llm_train.model.optimizer.groups import Group
from llm_train.run_state import task_of
from llm_train.runtime.random_state import random_state


def write(trainer: pl.Trainer, stage: Path, built: Sequence[Group]) -> dict[str, Any]:
    """Writes this rank's part; collective over ranks.

    Args:
        trainer: between two optimizer steps.
        stage: a directory with an empty folder ``state``, the same for all ranks.
        built: what the optimizer's groups began with.

    Returns:
        What callbacks keep, for ``finish``.
    """
    keeper(trainer).save_state(stage / "state")
    callback_state.write_tensors(trainer, stage)
    random = random_state(trainer.strategy.root_device)
    kept = callback_state.collect(trainer)
    groups = group_state.changes(trainer.optimizers[0].param_groups, built)
    sums = task_of(trainer.lightning_module).run_state.sums.cpu()
    rank = {"random": random, "sums": sums, "groups": groups}
    torch.save(rank, stage / _rank_file(trainer.global_rank))
    return kept


def finish(stage: Path, kept: dict[str, Any], files: Mapping[str, str]) -> None:
    """Writes what is the same for all ranks, on one of them."""
    callback_state.write(stage, kept)
    for name, text in files.items():
        (stage / name).write_text(text, encoding="utf-8")


def position(trainer: pl.Trainer, samples_per_step: int) -> dict[str, Any]:
    """Where the run is, and who can read what it has written."""
    step, data, strategy = trainer.global_step, _data(trainer), keeper(trainer)
    consumed = data.consumed + (step - data.steps_done) * samples_per_step
    return {
        "step": step,
        "data": {**data.state_dict(), "consumed": consumed},
        "world_size": trainer.world_size,
        "strategy": type(strategy).__name__,
        "state_format": strategy.state_format,
    }


def restore(trainer: pl.Trainer, path: Path, built: Sequence[Group]) -> dict[str, Any] | None:
    """Gives a run everything that a checkpoint holds of it, but the random state.

    Returns:
        The random state, which starting the loaders would still change; None where the checkpoint
        is one of another number of ranks.
    """
    metadata = manifest.read(path).metadata
    keeper(trainer).load_state(path / "state", with_optimizer=True)
    _data(trainer).restore(metadata["data"], steps_done=metadata["step"])
    _set_loop_position(trainer, metadata["step"])
    callback_state.restore(trainer, path)
    return _restore_rank(trainer, path, built, metadata["world_size"])


def restart_data(trainer: pl.Trainer, batch: Tensor) -> None:
    """Makes a loop that is under way read from the position that ``restore`` has set.

    Args:
        trainer: before the first micro-batch of an optimizer step.
        batch: that micro-batch; its content is replaced.
    """
    data, loop = _data(trainer), trainer.fit_loop
    fetcher, progress = loop._data_fetcher, loop.epoch_loop.batch_progress
    loader = trainer.train_dataloader
    assert fetcher is not None
    assert loader is not None
    sampler = loader.sampler
    sampler.steps_done, sampler.consumed = data.steps_done, data.consumed
    iter(fetcher)  # asks the sampler again, and drops what workers have read ahead
    fetcher.fetched = progress.current.ready  # of an epoch that has as many micro-batches as ever
    batch.copy_(next(fetcher)[0])
    for counts in (progress.current, progress.total):
        counts.ready += 1
    progress.is_last_batch = fetcher.done
    loop.restarting = False  # or Lightning would take a validation that is due for an old one
    for each in (loop, loop.epoch_loop, loop.epoch_loop.val_loop):
        each._loaded_from_state_dict = each._resuming_from_checkpoint = False


def keeper(trainer: pl.Trainer) -> KeepsState:
    """The strategy, which writes and reads the state."""
    strategy = trainer.strategy
    assert isinstance(strategy, KeepsState), "check refuses strategies that cannot save exactly"
    return strategy


def _data(trainer: pl.Trainer) -> TokenData:
    data = trainer.datamodule  # type: ignore[attr-defined]  # not declared
    assert isinstance(data, TokenData), "a position in the data is saved of our data module only"
    return data


def _restore_rank(
    trainer: pl.Trainer, path: Path, built: Sequence[Group], ranks: int
) -> dict[str, Any] | None:
    """Restores what this rank saved; of another number of ranks, what all have in common."""
    rank, same = trainer.global_rank, ranks == trainer.world_size
    own = _load_rank(path, rank if same else 0)
    if "groups" in own:  # earlier versions saved none
        group_state.restore(trainer.optimizers[0].param_groups, built, own["groups"])
    sums = task_of(trainer.lightning_module).run_state.sums
    if same:
        sums.copy_(own["sums"])
        random: dict[str, Any] = own["random"]
        return random
    # Sums of another number of ranks cannot be split by rank, so rank 0 takes them all.
    sums.zero_()
    for other in range(ranks) if rank == 0 else ():
        sums += _load_rank(path, other)["sums"].to(sums)
    return None


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


def _load_rank(path: Path, rank: int) -> dict[str, Any]:
    """What a rank saved; what lay on its device comes to this rank's."""

    def place(storage: Any, where: str) -> Any:
        return default_restore_location(storage, where.partition(":")[0])  # type: ignore[no-untyped-call]

    found: dict[str, Any] = torch.load(
        path / _rank_file(rank), weights_only=True, map_location=place
    )
    return found


def _rank_file(rank: int) -> str:
    return f"rank-{rank:05d}.pt"
