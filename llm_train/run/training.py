"""Builds a run from settings and carries it out; the command line and a notebook use the same code.

Nothing here prints a table or leaves the process: a result is returned, and a mistake is raised.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from llm_train import check as checks
from llm_train.check.table import table_of
from llm_train.checkpoint import compatibility, manifest
from llm_train.checkpoint.best import Best
from llm_train.checkpoint.callback import Checkpoints, Restored
from llm_train.checkpoint.remote import Remote
from llm_train.checkpoint.store import CheckpointStore
from llm_train.checkpoint.writer import Writer
from llm_train.derived import Derived
from llm_train.errors import CheckpointError, ConfigError, LLMTrainError
from llm_train.exchange.warm_start import WarmStart
from llm_train.model.lightning_shortcuts import no_sanity_check
from llm_train.model.network.init import Start, as_drawn
from llm_train.run import directory, memory
from llm_train.run.meeting import leave_process_group, watched
from llm_train.run.trainer import build_trainer, lightning_errors, rebind
from llm_train.runtime.lease import Lease
from llm_train.runtime.ledger import Ledger
from llm_train.runtime.terminal import say
from llm_train.settings import Settings
from llm_train.trainer.logger.base import log_event
from llm_train.trainer.logger.jsonl import JSONLMetrics
from llm_train.trainer.logger.records import read_metrics


@dataclass(frozen=True, kw_only=True)
class Result:
    """The outcome of a run or a validation.

    Attributes:
        step: optimizer steps done.
        path: what holds them: the run directory, or the checkpoint that was scored.
        metrics: held-out metrics by their names in metrics.jsonl; empty if nothing was scored.
        complete: whether the whole budget was trained.
        signal: number of the signal that stopped training; 0 if none did.
    """

    step: int
    path: Path
    metrics: dict[str, float] = field(default_factory=dict)
    complete: bool = True
    signal: int = 0


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training run, ready to start.

    Attributes:
        settings: what was configured.
        table: every derived number by section, as ``check`` prints them.
        trainer: Lightning's Trainer with all callbacks and loggers.
    """

    settings: Settings
    table: dict[str, dict[str, Any]]
    trainer: pl.Trainer

    @property
    def derived(self) -> Derived:
        """The numbers that follow from the settings, and from the steps that a resume goes on."""
        return self.settings.task.derived

    @cached_property
    def lease(self) -> Lease:
        """Held while the run trains, so that no other writes into its folder."""
        return Lease(folder=self.settings.run_dir)

    def watch(self, callback: pl.Callback, *, first: bool = False) -> None:
        """Adds a callback: before all others, or after all but the one that saves.

        Saving comes last because what others do at a step boundary belongs to the step.
        """
        callbacks: list[pl.Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        callbacks.insert(0 if first else len(callbacks) - 1, callback)

    def fit(self) -> Result:
        """Trains until the budget is used up, or until a signal or a callback stops the run."""
        task, trainer = self.settings.task, self.trainer
        ledger = task.run_state.ledger
        ledger.switch("start_up/lease")
        lease = self.lease.held() if trainer.is_global_zero else nullcontext()
        with lease, _ended(ledger, lambda: trainer.global_step >= self.derived.total_steps):
            ledger.switch("start_up/process_group")
            with task.run_state.watch.running(watched(self.settings, trainer, self.lease)):
                too_small = memory.explained(self.settings, trainer)
                with (
                    too_small,
                    lightning_errors(),
                    no_sanity_check(),
                    _in_use(self.settings, trainer),
                ):
                    trainer.fit(task, datamodule=self.settings.data)
                leave_process_group(trainer)
        step, number = trainer.global_step, task.run_state.stop_signal
        metrics = _held_out(task.run_state.held_out)
        complete = step >= self.derived.total_steps and not number
        if complete and "val/loss" not in metrics:  # a finished run was resumed
            for record in read_metrics(self.settings.run_dir / "metrics.jsonl"):
                metrics |= _held_out(record) if record["step"] == step else {}
        return Result(
            step=step,
            path=self.settings.run_dir,
            metrics=metrics,
            complete=complete,
            signal=number,
        )


def build(settings: Settings, *, resume: str = "") -> Run:
    """Checks the settings and constructs the Trainer; nothing is trained or written yet.

    Args:
        settings: what was configured.
        resume: "auto" for the newest complete checkpoint of the run directory, or the path of a
            checkpoint or of a run; "" starts at step 0.

    Raises:
        ConfigError: the settings have problems; one line for each.
    """
    times = directory.begin_ledger(settings)
    if hasattr(settings.task, "network"):
        raise ConfigError("these settings already belong to a run with a network; load them again")
    settings = memory.fitted(settings)
    settings.device.prepare(settings.accelerator)
    if resume and (resume != "auto" or CheckpointStore(settings.run_dir / "checkpoints").steps()):
        settings = _without_source(settings)
    checks.require_sound(settings)
    derived = settings.derive()
    _begin_with(settings, settings.init_from.start(settings.task.network_config))
    metrics = JSONLMetrics()

    def require_lease() -> None:
        run.lease.require()

    metrics.require = times.require = require_lease
    store, remote = replace(_store(settings, derived), require=require_lease), None
    if settings.checkpoint.remote:
        remote = Remote(url=settings.checkpoint.remote, store=store)
        store = replace(store, in_use=remote.uses)
    saver = Checkpoints(
        writer=Writer(
            store=store,
            committed=(lambda path: None) if remote is None else remote.offer,
            metadata=directory.metadata_for_checkpoints(settings, derived),
            files=directory.files_for_checkpoints(settings),
        ),
        every=settings.checkpoint.every.steps(derived.tokens_per_step),
        resume=resume,
        remote=remote,
        asynchronous=settings.checkpoint.asynchronous,
        compare_replicas=settings.checkpoint.compare_replicas,
        # Called when training starts, by when ``table``, ``trainer`` and ``run`` exist.
        announce=lambda found: directory.record(
            settings, table, trainer.loggers, found, resume=resume
        ),
        follow=lambda metadata: _follow(settings, trainer, metadata),
        first_save=lambda step: log_event(trainer.loggers, directory.FIRST_SAVE, step),
    )
    agree = [memory.SameMicroBatch()] if settings.batch.on_out_of_memory == "halve" else []
    with lightning_errors():
        trainer = build_trainer(settings, derived, [*agree, saver], metrics)
    table = checks.table(settings, trainer.strategy.root_device)
    run = Run(settings=settings, table=table, trainer=trainer)
    return run


def validate(settings: Settings, checkpoint: str = "auto") -> Result:
    """Scores a checkpoint on all held-out data.

    Args:
        settings: what was configured.
        checkpoint: "auto" for the newest complete one of the run directory, or a path.

    Raises:
        ConfigError: the settings have problems; one line for each.
        CheckpointError: there is no checkpoint, or it does not fit the settings.
    """
    settings = _without_source(settings)
    settings.device.prepare(settings.accelerator)
    checks.require_sound(settings)
    derived = settings.derive()
    path = _store(settings, derived).resolve(checkpoint).path
    if path is None:
        raise CheckpointError(
            f"{settings.run_dir} holds no checkpoint to validate; train first, or give "
            "--checkpoint PATH"
        )
    scoring = settings.strategy.validating(settings.world)
    settings = replace(settings, trainer_args={**settings.trainer_args, "strategy": scoring})
    with lightning_errors():
        trainer = build_trainer(settings, derived, [], None)
        trainer.callbacks.insert(0, Restored(path))  # type: ignore[attr-defined]
        with _in_use(settings, trainer):
            trainer.validate(settings.task, datamodule=settings.data, verbose=False)
    leave_process_group(trainer)
    step = int(manifest.read(path).metadata["step"])
    return Result(step=step, path=path, metrics=_held_out(settings.task.run_state.held_out))


def rehearse(settings: Settings, callback: pl.Callback) -> None:
    """Trains as ``fit`` would, with one more callback that ends it, and writes nothing that stays.

    Args:
        settings: what was configured.
        callback: comes first.
    """
    settings.device.prepare(settings.accelerator)
    derived = settings.derive()
    with tempfile.TemporaryDirectory() as folder, lightning_errors():
        elsewhere = {"default_root_dir": folder, "logger": False, "enable_progress_bar": False}
        settings = replace(settings, trainer_args={**settings.trainer_args, **elsewhere})
        trainer = build_trainer(settings, derived, [], JSONLMetrics())
        trainer.callbacks.insert(0, callback)  # type: ignore[attr-defined]
        with no_sanity_check(), _in_use(settings, trainer):
            trainer.fit(settings.task, datamodule=settings.data)
    leave_process_group(trainer)


def _follow(settings: Settings, trainer: pl.Trainer, metadata: Mapping[str, Any]) -> None:
    """Derives the numbers of the run again where a checkpoint was trained with other batches."""
    _begin_with(settings, as_drawn)  # what is restored takes their place
    step, task = metadata["step"], settings.task
    before = compatibility.sizes(metadata)
    if before == task.derived.sizes(step):
        return
    derived = settings.derive(before, step)
    rebind(settings, derived, trainer, step)
    stage, now = derived.stage(step), before[-1][1] * derived.sequence
    if trainer.is_global_zero:
        table = table_of(settings, derived, trainer.strategy.root_device)
        directory.write_table(settings.run_dir, table)
        say(
            f"\nbatch: {now:,} -> {stage.tokens_per_step:,} tokens a step from step {step:,} on; "
            f"learning rate x {stage.learning_rate_factor:.6g} by batch.scaling; "
            f"{derived.total_steps:,} steps in all"
        )


def _without_source(settings: Settings) -> Settings:
    """A checkpoint takes the place of other weights, which may be gone by now."""
    return replace(settings, init_from=WarmStart())


def _begin_with(settings: Settings, start: Start) -> None:
    settings.task.construction = replace(settings.task.construction, start=start)


def _held_out(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name.startswith("val/")}


@contextmanager
def _ended(ledger: Ledger, complete: Callable[[], bool]) -> Iterator[None]:
    """Closes the ledger while the run still holds its folder, however it ends."""
    try:
        yield
    finally:
        with suppress(LLMTrainError):  # the folder was lost, which is being said already
            ledger.end(complete=complete())


@contextmanager
def _in_use(settings: Settings, trainer: pl.Trainer) -> Iterator[None]:
    """What the process is told about the device while a run lasts."""
    device = trainer.strategy.root_device
    with (
        settings.device.in_use(settings.accelerator, device.index or 0),
        settings.task.kernels(device),
    ):
        yield


def _store(settings: Settings, derived: Derived) -> CheckpointStore:
    return CheckpointStore(
        settings.run_dir / "checkpoints",
        keep_last=settings.checkpoint.keep_last,
        keep_every=settings.checkpoint.keep_every.steps(derived.tokens_per_step),
        best=Best(settings.checkpoint.best, settings.checkpoint.best_is == "highest"),
    )
