"""What a checkpoint of a run holds besides the store's manifest, and how a run gets it back.

Every rank writes its part of weights and optimizer state, its random state, its sums and what the
optimizer keeps in groups. Rank 0 adds the callbacks' state, the position in the data, and the texts
that make a checkpoint usable without its run.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import Tensor
from torch.serialization import default_restore_location

from llm_train.checkpoint import callback_state, dcp, group_state, manifest
from llm_train.checkpoint.compatibility import KeepsState
from llm_train.checkpoint.loop_position import set_position
from llm_train.checkpoint.rank_state import RankState, Snapshot, copied
from llm_train.data.module import data_of
from llm_train.model.optimizer.groups import Group
from llm_train.run_state import task_of
from llm_train.runtime.random_state import random_state


@dataclass(frozen=True, kw_only=True)
class Content:
    """What this rank writes of one step.

    Attributes:
        states: tensors by the folder of the checkpoint that holds them.
        rank: what is this rank's alone.
        kept: what callbacks keep.
        position: where the run is, and who can read what it has written.
        snapshot: holds the copies that ``states`` are; None where they are no copies.
    """

    states: Mapping[str, RankState]
    rank: Mapping[str, Any]
    kept: dict[str, Any]
    position: Mapping[str, Any]
    snapshot: Snapshot | None

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return int(self.position["step"])

    def write(self, stage: Path, group: dist.ProcessGroup | None) -> None:
        """Writes this rank's part; collective over the ranks of ``group``, None being all."""
        if self.snapshot is not None:
            self.snapshot.wait()
        for folder, state in self.states.items():
            dcp.write(stage / folder, state, group)
        rank = dist.get_rank() if dist.is_initialized() else 0
        with open(stage / _rank_file(rank), "wb") as file:  # torch's own says less when it fails
            torch.save(self.rank, file)

    def finish(self, stage: Path, files: Mapping[str, str]) -> None:
        """Writes what is the same for all ranks, on one of them."""
        callback_state.write(stage, self.kept)
        for name, text in files.items():
            (stage / name).write_text(text, encoding="utf-8")


def take(trainer: pl.Trainer, built: Sequence[Group], snapshot: Snapshot | None) -> Content:
    """What a run that is between two optimizer steps has to save; on all ranks.

    Args:
        trainer: that trains.
        built: what the optimizer's groups began with.
        snapshot: makes the copy of what training changes; None where it stands still meanwhile.
    """
    states = {"state": keeper(trainer).state()}
    if tensors := callback_state.tensors(trainer):
        states[callback_state.FOLDER] = RankState(tensors=tensors)
    states = {folder: state.shared_out() for folder, state in states.items()}
    kept = callback_state.collect(trainer)
    rank = {
        "random": random_state(trainer.strategy.root_device),
        "sums": task_of(trainer.lightning_module).run_state.sums.cpu(),
        "precision": trainer.precision_plugin.state_dict(),
        "groups": group_state.changes(trainer.optimizers[0].param_groups, built),
    }
    if snapshot is not None:
        states = {folder: snapshot.of(folder, state) for folder, state in states.items()}
        rank = copied(rank)
        kept = copied(kept) if trainer.is_global_zero else {}
    position = _position(trainer)
    return Content(states=states, rank=rank, kept=kept, position=position, snapshot=snapshot)


def _position(trainer: pl.Trainer) -> dict[str, Any]:
    step, data, strategy = trainer.global_step, data_of(trainer), keeper(trainer)
    derived = task_of(trainer.lightning_module).derived
    sizes = derived.sizes(step)
    scores = task_of(trainer.lightning_module).run_state.scores
    return {
        "step": step,
        "learning_rate": float(trainer.optimizers[0].param_groups[0]["lr"]),  # of that step
        "data": data.position(data.consumed_at(step, derived)),
        "samples_per_step": sizes[-1][1] if sizes else derived.stages[0].samples_per_step,
        "stages": sizes,
        "world_size": trainer.world_size,
        "strategy": type(strategy).__name__,
        "state_format": strategy.state_format,
        "metrics": {k: v for k, (at, v) in scores.items() if at == step and math.isfinite(v)},
    }


def restore(trainer: pl.Trainer, path: Path, built: Sequence[Group]) -> dict[str, Any] | None:
    """Gives a run everything that a checkpoint holds of it, but the random state.

    Returns:
        The random state, which starting the loaders would still change; None where the checkpoint
        is one of another number of ranks.
    """
    metadata = manifest.read(path).metadata
    keeper(trainer).load_state(path / "state", with_optimizer=True)
    data_of(trainer).restore(metadata["data"], steps_done=metadata["step"])
    set_position(trainer, task_of(trainer.lightning_module).derived, metadata["step"])
    callback_state.restore(trainer, path)
    return _restore_rank(trainer, path, built, metadata["world_size"])


def restart_data(trainer: pl.Trainer, batch: Tensor) -> None:
    """Makes a loop that is under way read from the position that ``restore`` has set.

    Args:
        trainer: before the first micro-batch of an optimizer step.
        batch: that micro-batch; its content is replaced.
    """
    data, loop = data_of(trainer), trainer.fit_loop
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


def _restore_rank(
    trainer: pl.Trainer, path: Path, built: Sequence[Group], ranks: int
) -> dict[str, Any] | None:
    """Restores what this rank saved; of another number of ranks, what all have in common."""
    rank, same = trainer.global_rank, ranks == trainer.world_size
    own = _load_rank(path, rank if same else 0)
    group_state.restore(trainer.optimizers[0].param_groups, built, own["groups"])
    if own.get("precision"):  # a scaler's, the same on all ranks
        trainer.precision_plugin.load_state_dict(own["precision"])
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


def _load_rank(path: Path, rank: int) -> dict[str, Any]:
    """What a rank saved; what lay on its device comes to this rank's."""

    def place(storage: Any, where: str) -> Any:
        return default_restore_location(storage, where.partition(":")[0])  # type: ignore[no-untyped-call]

    file = path / _rank_file(rank)
    with dcp.readable(file):
        found: dict[str, Any] = torch.load(file, weights_only=True, map_location=place)
    return found


def _rank_file(rank: int) -> str:
    return f"rank-{rank:05d}.pt"
