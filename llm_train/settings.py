"""A parsed and instantiated configuration, before any device or process group exists."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from llm_train.checkpoint.remote import require_url
from llm_train.context import Context, Model, Part
from llm_train.data.module import TokenData
from llm_train.derived import Derived, Sizes
from llm_train.errors import ConfigError
from llm_train.exchange.warm_start import WarmStart
from llm_train.model.network.meta import without_memory
from llm_train.model.task import Task
from llm_train.runtime.device_options import DeviceOptions
from llm_train.runtime.devices import Kind, kind_called
from llm_train.runtime.launch import Launch, find_launch
from llm_train.runtime.watch.verdict import WatchOptions
from llm_train.trainer.strategy import MeshShape, Strategy, World, from_word
from llm_train.trainer.strategy.base import require_strategy
from llm_train.units import Batch, Duration

_NEVER = Duration(0, "steps")
_FULL_NAMES = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}


@dataclass(frozen=True, kw_only=True)
class CheckpointPolicy:
    """When checkpoints are written and which are kept.

    Args:
        every: distance between checkpoints; 0 steps writes one at the end only.
        keep_last: how many of the newest are kept.
        keep_every: checkpoints at multiples of this are kept for good; 0 steps keeps none.
        best: metric by which the best checkpoint is kept as well, and linked as checkpoints/best;
            it must be measured at a step that saves (val/loss, eval/TASK/acc ...); "": none.
        best_is: whether the lowest or the highest value is the best.
        asynchronous: training goes on while a checkpoint is written, from a copy in host memory.
        remote: URL where checkpoints are uploaded in the background, any that fsspec knows: s3://
            (with s3fs installed), gs:// (gcsfs), file://; "" uploads none.
        compare_replicas: ranks compare their copies of weights, bit by bit, before each save and at
            each log point, and end the run where they differ (ddp, hsdp, LocalSGD).
    """

    every: Duration = _NEVER
    keep_last: int = 2
    keep_every: Duration = _NEVER
    best: str = ""
    best_is: Literal["lowest", "highest"] = "lowest"
    asynchronous: bool = False
    remote: str = ""
    compare_replicas: bool = True

    def __post_init__(self) -> None:
        if self.keep_last < 1:
            raise ConfigError(
                f"checkpoint.keep_last={self.keep_last} must be at least 1: "
                "the newest is what one resumes from"
            )
        if self.remote:
            require_url(self.remote)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that a configuration says.

    Attributes:
        seed: seed of weights, data order and dropout.
        budget: length of the run.
        validate_every: distance between validations; 0 steps validates at the end only.
        batch: the global batch.
        checkpoint: when to save.
        device: how devices are used.
        watch: when a rank counts as lost.
        init_from: weights from elsewhere that the run begins with.
        task: the LightningModule with its parts.
        data: the LightningDataModule with its parts.
        trainer_args: Lightning's Trainer arguments, nested objects instantiated.
        text: the resolved configuration as YAML; it can be run again unchanged.
        plain: the same as nested plain values.
        name: what to call the run when no directory is given.
        notes: what was not said but follows from how options were laid over files.
    """

    seed: int
    budget: Duration
    validate_every: Duration
    batch: Batch
    checkpoint: CheckpointPolicy
    device: DeviceOptions
    task: Task
    data: TokenData
    trainer_args: dict[str, Any]
    text: str
    watch: WatchOptions = field(default_factory=WatchOptions)
    init_from: WarmStart = field(default_factory=WarmStart)
    plain: dict[str, Any] = field(default_factory=dict)
    name: str = "run"
    notes: tuple[str, ...] = ()

    @property
    def run_dir(self) -> Path:
        """Where the run writes: trainer.default_root_dir, else runs/NAME of the configuration."""
        return Path(self.trainer_args.get("default_root_dir") or f"runs/{self.name}")

    @property
    def unmasked(self) -> bool:
        """Every training target counts: none is absent, left out, or ignored by the loss."""
        all_there = self.data.source.unmasked and self.task.documents == "joined"
        return all_there and self.task.loss.ignore_index < 0

    @property
    def launch(self) -> Launch:
        """The launcher of this process, and how many processes it started."""
        return find_launch()

    @property
    def world_size(self) -> int:
        """Number of ranks the run will have, without starting anything."""
        if self.launch.kind != "none":
            return self.launch.ranks
        return self.devices * int(self.trainer_args.get("num_nodes") or 1)

    @property
    def world(self) -> World:
        """The ranks that the run will have, as a strategy wants to know them."""
        return World(ranks=self.world_size, devices=self.devices, device=self._first_device)

    @cached_property
    def strategy(self) -> Strategy:
        """The strategy, whether it was configured as a word or as a class.

        Raises:
            ConfigError: the configured strategy is not one of ours.
        """
        written = self.trainer_args.get("strategy", "auto")
        return (
            from_word(written, self.world)
            if isinstance(written, str)
            else require_strategy(written)
        )

    @property
    def mesh_shape(self) -> MeshShape:
        """How the ranks share data and state.

        Raises:
            ConfigError: the ranks do not divide.
        """
        return self.strategy.mesh_shape(self.world_size)

    @property
    def precision(self) -> str:
        """The precision by its full name; Lightning also takes short ones."""
        precision = str(self.trainer_args.get("precision") or "32-true")
        return _FULL_NAMES.get(precision, precision)

    @property
    def callbacks(self) -> list[Any]:
        """What trainer.callbacks lists."""
        return _as_list(self.trainer_args.get("callbacks"))

    @property
    def loggers(self) -> list[Any]:
        """What trainer.logger names, unless it is true or false."""
        logger = self.trainer_args.get("logger")
        return [] if isinstance(logger, bool) else _as_list(logger)

    def parts(self) -> Iterator[Part]:
        """Yields all parts, nested ones included."""
        roots = (self.task, self.data, self.strategy, *self.callbacks, *self.loggers)
        waiting = [part for part in roots if isinstance(part, Part)]
        while waiting:
            part = waiting.pop(0)
            yield part
            waiting += part.parts()

    def context(self, *, running: bool = False) -> Context:
        """What parts may know of one another.

        Args:
            running: a run is about to start here, so that devices and prepared data must be there.

        Raises:
            ConfigError: devices or strategy make no sense.
        """
        count = self.accelerator.count
        return Context(
            running=running,
            prepared=self.data.source.prepared,
            batch=self.batch,
            ranks=self.world_size,
            devices=self.devices,
            here=tuple(index for index in range(count) if index in self._indices),
            accelerator=self.accelerator,
            precision=self.precision,
            gradient_clip=self.trainer_args.get("gradient_clip_val") or 0.0,
            unmasked=self.unmasked,
            lengths={
                "budget": self.budget,
                "validate_every": self.validate_every,
                "checkpoint.every": self.checkpoint.every,
            },
            compile=self.task.construction.compile,
            float8=self.task.construction.float8,
            update=self.task.update,
            documents=self.task.documents,
            token_ids=self.task.network_config.token_ids,
            strategy=self.strategy.traits(self.world_size),
            optimizer=self.task.optimizer_config.traits,
            derive=self.derive,
            build=self._build,
            build_optimizer=self.task.optimizer_config.build,
        )

    def derive(self, before: Sizes = (), step: int = 0) -> Derived:
        """The numbers of the run for the ranks it will have.

        Args:
            before: the batches of the steps that are done, where a run continues.
            step: how many are done.

        Raises:
            ConfigError: something does not divide, or a duration is empty.
        """
        log_every = self.trainer_args.get("log_every_n_steps")
        return Derived.of(
            seed=self.seed,
            batch=self.batch,
            budget=self.budget,
            validate_every=self.validate_every,
            log_every=10 if log_every is None else log_every,
            ranks=self.world_size,
            tensor=self.mesh_shape.tensor,
            before=before,
            step=step,
        )

    def _build(self) -> Model:
        with without_memory():
            return self.task.network_config.build()

    @property
    def _first_device(self) -> str:
        kind = self.accelerator.type
        return kind if kind == "cpu" else f"{kind}:{self._indices[0]}"

    @property
    def _indices(self) -> Sequence[int]:
        """Of the devices of this node."""
        wanted = self.trainer_args.get("devices", "auto")
        return wanted if isinstance(wanted, list) and wanted else range(self.devices)

    @property
    def devices(self) -> int:
        """Devices per node: as configured, else what the launcher started, else what is there.

        Raises:
            ConfigError: ``trainer.devices`` is not a count, a list or auto.
        """
        wanted = self.trainer_args.get("devices", "auto")
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
        return max(1, self.accelerator.count)

    @property
    def plugins(self) -> list[Any]:
        """Lightning's plugins, as a list however they were given."""
        return _as_list(self.trainer_args.get("plugins"))

    @property
    def accelerator(self) -> Kind:
        """The kind of device that the run will use."""
        return kind_called(str(self.trainer_args.get("accelerator", "auto")))

    @property
    def product_dtype(self) -> str:
        """The type in which most matrices are multiplied, by its name in the table of devices."""
        return self.device.product_dtype(self.accelerator, self.precision)


def _as_list(value: object) -> list[Any]:
    """Lightning takes one thing or several."""
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]
