"""A parsed and instantiated configuration, before any device or process group exists."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from llm_train.data.module import TokenData
from llm_train.errors import ConfigError
from llm_train.model.task import Task
from llm_train.runtime.launch import Launch, find_launch
from llm_train.trainer.strategy import MeshShape, Strategy, World, from_word
from llm_train.trainer.strategy.base import placing
from llm_train.units import Batch, Duration

_NEVER = Duration(0, "steps")


@dataclass(frozen=True, kw_only=True)
class CheckpointPolicy:
    """When checkpoints are written and which are kept.

    Args:
        every: distance between checkpoints; 0 steps writes one at the end only.
        keep_last: how many of the newest are kept.
        keep_every: checkpoints at multiples of this are kept for good; 0 steps keeps none.
    """

    every: Duration = _NEVER
    keep_last: int = 2
    keep_every: Duration = _NEVER

    def __post_init__(self) -> None:
        if self.keep_last < 1:
            raise ConfigError(
                f"checkpoint.keep_last={self.keep_last} must be at least 1: "
                "the newest is what one resumes from"
            )


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that a configuration says.

    Attributes:
        seed: seed of weights, data order and dropout.
        budget: length of the run.
        validate_every: distance between validations; 0 steps validates at the end only.
        batch: the global batch.
        checkpoint: when to save.
        task: the LightningModule with its parts.
        data: the LightningDataModule with its parts.
        trainer: Lightning's Trainer arguments, nested objects instantiated.
        text: the resolved configuration as YAML; runs again as it is.
        plain: the same as nested plain values.
        name: what to call the run when no directory is given.
    """

    seed: int
    budget: Duration
    validate_every: Duration
    batch: Batch
    checkpoint: CheckpointPolicy
    task: Task
    data: TokenData
    trainer: dict[str, Any]
    text: str
    plain: dict[str, Any] = field(default_factory=dict)
    name: str = "run"

    @property
    def run_dir(self) -> Path:
        """Where the run writes: trainer.default_root_dir, else runs/NAME of the configuration."""
        return Path(self.trainer.get("default_root_dir") or f"runs/{self.name}")

    @property
    def dense(self) -> bool:
        """Every training target counts: none is absent, and none is a token the loss ignores."""
        return self.data.source.dense and self.task.loss.ignore_index < 0

    @property
    def launch(self) -> Launch:
        """Who started this process, and as one of how many."""
        return find_launch()

    @property
    def world_size(self) -> int:
        """Number of ranks the run will have, without starting anything."""
        if self.launch.kind != "none":
            return self.launch.ranks
        return self.devices * int(self.trainer.get("num_nodes") or 1)

    @property
    def world(self) -> World:
        """The ranks that the run will have, as a strategy wants to know them."""
        return World(ranks=self.world_size, devices=self.devices, device=self._first_device)

    @cached_property
    def strategy(self) -> Strategy:
        """Where weights, gradients and state will live, whichever way it was written.

        Raises:
            ConfigError: no strategy of ours answers to what was written.
        """
        written = self.trainer.get("strategy", "auto")
        return from_word(written, self.world) if isinstance(written, str) else placing(written)

    @property
    def mesh_shape(self) -> MeshShape:
        """How the ranks share data and state.

        Raises:
            ConfigError: the ranks do not divide.
        """
        return self.strategy.mesh_shape(self.world_size)

    @property
    def _first_device(self) -> str:
        wanted = self.trainer.get("devices")
        return f"cuda:{wanted[0] if isinstance(wanted, list) else 0}" if self.on_cuda else "cpu"

    @property
    def devices(self) -> int:
        """Devices per node: as configured, else what the launcher started, else what is there.

        Raises:
            ConfigError: ``trainer.devices`` is not a count, a list or auto.
        """
        wanted = self.trainer.get("devices", "auto")
        if isinstance(wanted, list):
            return len(wanted)
        text = str(wanted)
        if text.isdigit() and int(text) > 0:
            return int(text)
        if text not in ("auto", "-1"):
            raise ConfigError(
                f"trainer.devices={wanted!r} must be a positive count, a list of indices, or auto"
            )
        if self.launch.kind != "none":
            return self.launch.local_ranks
        return max(1, torch.cuda.device_count()) if self.on_cuda else 1

    @property
    def plugins(self) -> list[Any]:
        """Lightning's plugins, as a list however they were given."""
        plugins = self.trainer.get("plugins") or []
        return list(plugins) if isinstance(plugins, list) else [plugins]

    @property
    def on_cuda(self) -> bool:
        """Whether the run will use CUDA devices."""
        accelerator = self.trainer.get("accelerator", "auto")
        wanted = accelerator in ("gpu", "cuda")
        return wanted or (accelerator == "auto" and torch.cuda.is_available())
