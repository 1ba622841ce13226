"""Which checkpoints may be loaded into what, said before anything is read; and weights alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from llm_train.checkpoint import manifest, tensors
from llm_train.checkpoint.rank_state import RankState
from llm_train.errors import CheckpointError, check_at_least
from llm_train.runtime.structure import structure

# What a position in the data and an optimizer's state depend on, and the keys that set it.
_FIXED = {"seed": "seed", "sequence": "batch.sequence", "optimizer": "model.optimizer"}


@dataclass(frozen=True, kw_only=True)
class _Position:
    """The position in the data."""

    consumed: int
    fingerprint: str

    def __post_init__(self) -> None:
        check_at_least(self, 0, "consumed")


@dataclass(frozen=True, kw_only=True)
class _RunMetadata:
    """What a resume reads of a manifest's metadata."""

    step: int
    world_size: int
    strategy: str
    state_format: str
    data: _Position
    seed: int
    sequence: int
    samples_per_step: int
    optimizer: str
    learning_rate: float
    stages: list[list[int]]

    def __post_init__(self) -> None:
        check_at_least(self, 0, "step")
        check_at_least(self, 1, "world_size", "samples_per_step")
        if any(len(pair) != 2 or pair[0] < 0 or pair[1] < 1 for pair in self.stages):
            raise ValueError(f"stages={self.stages} are not pairs of a step and its samples")


@runtime_checkable
class KeepsState(Protocol):
    """A strategy that writes and reads the state of a run, every rank its part."""

    state_format: str
    also_reads: tuple[str, ...]

    @property
    def timeout(self) -> timedelta | None:
        """How long ranks wait for one another; None: for as long as torch says."""

    def require_equal_replicas(self) -> None:
        """Ends the run where ranks hold different copies of the same tensor."""

    def state(self) -> RankState:
        """Weights and optimizer state, as far as this rank writes them."""

    def load_state(self, directory: Path, *, with_optimizer: bool) -> None:
        """Reads what was written of ``state``."""


def require_same_run(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuses changes after which the position of the run would mean something else.

    Raises:
        CheckpointError: another seed, sequence or optimizer.
    """
    if before["strategy"] == "import":
        raise CheckpointError(
            f"{path} holds weights alone, and there is no run to go on with; "
            f"set init_from.path={path} instead of --resume"
        )
    for key, name in _FIXED.items():
        if before[key] != now[key]:
            raise CheckpointError(
                f"{name} is {now[key]} but {path} was trained with {before[key]}, so its state and "
                "position would mean something else; put the old value back, or start a new run"
            )


def require_loadable(
    path: Path, metadata: Mapping[str, Any], strategy: KeepsState, ranks: int
) -> None:
    """Refuses, before anything is read, a checkpoint that ``strategy`` cannot load.

    Args:
        path: the checkpoint.
        metadata: what its manifest says.
        strategy: what is to load it.
        ranks: that are to load it.

    Raises:
        CheckpointError: another file format, or one for another number of ranks.
    """
    require_weights(path, metadata)
    written = metadata["state_format"]
    if written not in (strategy.state_format, *strategy.also_reads):
        raise CheckpointError(
            f"{path} was written by {metadata['strategy']} in {written} format, which "
            f"{type(strategy).__name__} cannot read; resume with "
            f"trainer.strategy={metadata['strategy']}"
        )
    if written == "replicas" and metadata["world_size"] != ranks:
        raise CheckpointError(
            f"{path} holds {metadata['world_size']} replicas of {metadata['strategy']} with an "
            f"optimizer state each, which {ranks} ranks cannot take over; resume on as many"
        )


def require_weights(path: Path, metadata: Mapping[str, Any]) -> None:
    """Refuses a checkpoint out of which not even the weights can be read.

    Raises:
        CheckpointError: its manifest is not one of a run.
    """
    try:
        structure(_RunMetadata, metadata)
    except ValueError as error:
        raise CheckpointError(
            f"{path / manifest.NAME} is not one of a run: metadata: {error}; resume from another "
            "checkpoint"
        ) from None


def sizes(metadata: Mapping[str, Any]) -> list[tuple[int, int]]:
    """The batches that a checkpoint was trained with."""
    return [(first, size) for first, size in metadata["stages"]]


def load_weights(path: Path, network: torch.nn.Module) -> None:
    """Reads the weights of a checkpoint alone, whatever strategy wrote them.

    Raises:
        CheckpointError: another format, or a network that they do not fit.
    """
    require_weights(path, manifest.read(path).metadata)
    tensors.load(path / "state", network, None)
