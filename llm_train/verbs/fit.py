"""What each verb does. A run is built in a few lines; everything else is asked of the parts."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from llm_train import check as checks
from llm_train.checkpoint import manifest
from llm_train.checkpoint.callback import Checkpoints, Restored
from llm_train.checkpoint.store import CheckpointStore
from llm_train.data.prepare import prepare as prepare_tokens
from llm_train.derived import Derived
from llm_train.errors import CheckpointError, ConfigError
from llm_train.run import directory as rundir
from llm_train.run.trainer import bind, build_trainer
from llm_train.runtime.terminal import say, section
from llm_train.settings import Settings
from llm_train.trainer.callbacks.collectives import Collectives
from llm_train.trainer.callbacks.forecast import Forecast, planned
from llm_train.trainer.callbacks.profile import Profile
from llm_train.trainer.logger.jsonl import JSONLMetrics
from llm_train.trainer.logger.records import read_metrics

# --- verbs ----------------------------------------------------------------------------------------


def prepare(settings: Settings, *, force: bool) -> int:
    """Makes the tokens that ``data.source`` reads."""
    source = settings.data.source
    if source.folder is None:
        raise ConfigError(
            f"data.source={type(source).__name__} reads nothing that could be prepared; "
            "TokenShards does"
        )
    prepare_tokens(settings.data.recipe, source.folder, force=force)
    say(section("data", source.description()))
    return 0


def check(settings: Settings) -> int:
    """Prints every derived number, or all problems; needs neither the devices nor the data."""
    _require_sound(settings, running=False)
    for title, values in checks.table(settings).items():
        if values:
            say(section(title, values))
    for note in checks.notes(settings):
        say(f"\nnote: {note}")
    say("\nno problems found")
    return 0


def fit(
    settings: Settings,
    resume: str,
    profile: bool = False,
    count_collectives: bool = False,
    plan: str = "",
) -> int:
    """Trains from the start or from a checkpoint."""
    _require_sound(settings)
    derived = settings.derive()
    forecasts = [Forecast(planned(Path(plan), _planned_for(settings)))] if plan else []
    save_every = settings.checkpoint.every.steps(derived.tokens_per_step)
    profiles = [Profile(settings.run_dir, derived, save_every=save_every)] if profile else []
    table = checks.table(settings)
    for title, values in table.items():
        if values:
            say(section(title, values))
    store = _store(settings, derived)
    saver = Checkpoints(
        store,
        every=save_every,
        metadata={
            "seed": derived.seed,
            "samples_per_step": derived.samples_per_step,
            "sequence": derived.sequence,
            "optimizer": type(settings.task.optimizer_config).__name__,
        },
        files=rundir.files_for_checkpoints(settings),
        resume=resume,
        announce=lambda found: rundir.record(
            settings, table, trainer.loggers, found, resume=bool(resume)
        ),
    )
    watching = [*profiles, *forecasts]
    trainer = build_trainer(settings, derived, [*watching, saver], JSONLMetrics())
    if count_collectives:
        trainer.callbacks.insert(0, Collectives())  # type: ignore[attr-defined]
    bind(settings, derived, trainer)
    with settings.task.kernels(trainer.strategy.root_device):
        trainer.fit(settings.task, datamodule=settings.data)
    return _conclude(
        settings, trainer, _leave_process_group(trainer, settings.task.run.stop_signal)
    )


def validate(settings: Settings, checkpoint: str) -> int:
    """Scores a checkpoint on all held-out data."""
    _require_sound(settings)
    derived = settings.derive()
    found = _store(settings, derived).resolve(checkpoint)
    if found.path is None:
        raise CheckpointError(
            f"{settings.run_dir} holds no checkpoint to validate; train first, or give "
            "--checkpoint PATH"
        )
    path = found.path
    if settings.strategy.only_trains:
        # DeepSpeed's engine does not only validate, and FSDP needs no more memory.
        instead = "fsdp" if settings.world_size > 1 else "auto"
        settings = replace(settings, trainer={**settings.trainer, "strategy": instead})
    trainer = build_trainer(settings, derived, [], None)
    trainer.callbacks.insert(0, Restored(path))  # type: ignore[attr-defined]
    bind(settings, derived, trainer)
    with settings.task.kernels(trainer.strategy.root_device):
        trainer.validate(settings.task, datamodule=settings.data, verbose=False)
    _leave_process_group(trainer)
    say(f"{path}: step {manifest.read(path).metadata['step']}")
    say(section("held out", _held_out(settings)))
    return 0


def report(run_dir: Path) -> int:
    """Draws a finished or running run, and names every file it has."""
    from llm_train.report import write_report

    write_report(run_dir)
    say(f"{run_dir} holds:")
    for file in sorted(run_dir.rglob("*")):
        depth = file.relative_to(run_dir).parts
        if depth[0] == rundir.EARLIER:
            continue
        if file.is_file() and depth[0] != "checkpoints":
            say(f"  {file}  {file.stat().st_size:,} bytes")
        elif file.is_dir() and len(depth) == 2 and depth[0] == "checkpoints":
            size = sum(f.stat().st_size for f in file.rglob("*") if f.is_file())
            say(f"  {file}/  {size:,} bytes")
    return 0


# --- building a run -------------------------------------------------------------------------------


def _require_sound(settings: Settings, *, running: bool = True) -> None:
    found = checks.problems(settings, running=running)
    if found:
        raise ConfigError("\n".join(found))


def _planned_for(settings: Settings) -> dict[str, object]:
    """What a plan must have been made for, by the names in its file."""
    mesh = settings.mesh_shape
    strategy, micro_batch = settings.strategy.described(mesh), settings.batch.per_device
    return {"strategy": strategy, "layout": vars(mesh), "micro_batch": micro_batch}


def _store(settings: Settings, derived: Derived) -> CheckpointStore:
    return CheckpointStore(
        settings.run_dir / "checkpoints",
        keep_last=settings.checkpoint.keep_last,
        keep_every=settings.checkpoint.keep_every.steps(derived.tokens_per_step),
    )


def _leave_process_group(trainer: pl.Trainer, number: int = 0) -> int:
    """Ends communication while the interpreter is whole; gloo's threads can crash its shutdown.

    Returns the highest ``number`` of any rank: all must end with the same exit status, and a signal
    may have reached only some of them.
    """
    if torch.distributed.is_initialized():
        highest = torch.tensor(number, device=trainer.strategy.root_device)
        torch.distributed.all_reduce(highest, torch.distributed.ReduceOp.MAX)
        number = int(highest)
        torch.distributed.destroy_process_group()
    return number


def _conclude(settings: Settings, trainer: pl.Trainer, number: int) -> int:
    path = settings.run_dir / "checkpoints"
    step = trainer.global_step
    if step < settings.task.derived.total_steps:
        name = signal.Signals(number).name if number else "a callback"
        say(f"\nstopped by {name} after step {step}; saved in {path}; continue with --resume auto")
        return 128 + number if number else 0
    say(f"\ndone: {step} steps, {step * settings.task.derived.tokens_per_step:,} tokens")
    held_out = settings.task.run.held_out
    if not held_out:  # resumed after its last step
        for record in read_metrics(settings.run_dir / "metrics.jsonl"):
            held_out.update({k: v for k, v in record.items() if k.startswith("val/")})
    if held_out:
        say(section("held out", _held_out(settings)))
    say(f"\nwrote {settings.run_dir}/metrics.jsonl, config.yaml, derived.json and checkpoints/")
    return 0


def _held_out(settings: Settings) -> dict[str, Any]:
    held_out = settings.task.run.held_out
    result: dict[str, Any] = {"loss (nats per token)": round(held_out["val/loss"], 4)}
    if "val/bits_per_byte" in held_out:
        result["bits per byte"] = round(held_out["val/bits_per_byte"], 4)
    for key, value in settings.data.source.description().items():
        if key.endswith("bits_per_byte") and value is not None:
            result[key.replace("_", " ")] = round(float(value), 4)
    return result
