"""Rules about Lightning's Trainer arguments: which work here, and which another key replaces."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer, WeightAveraging
from lightning.pytorch.utilities.model_helpers import is_overridden

from llm_train.model.task import Task
from llm_train.settings import Settings
from llm_train.trainer import loss_scaling

PRECISIONS = ("32-true", "bf16-mixed", "bf16-true", "16-mixed")
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")
MONITORS = ("val/loss", "val/perplexity", "val/bits_per_byte")
PROFILERS = ("simple", "advanced", "pytorch", "xla")

# Trainer arguments that another key replaces or that would break an invariant, with the way out.
REPLACED = {
    "max_steps": "set budget, in steps or tokens",
    "max_epochs": "set budget, in steps or tokens",
    "min_epochs": "set budget, in steps or tokens",
    "min_steps": "set budget, in steps or tokens",
    "accumulate_grad_batches": (
        "it follows from batch.tokens, batch.per_device and the number of ranks"
    ),
    "val_check_interval": "set validate_every, in steps or tokens",
    "check_val_every_n_epoch": "set validate_every, in steps or tokens",
    "enable_checkpointing": "set checkpoint.every",
    "num_sanity_val_steps": "held-out data are checked before the run starts",
    "overfit_batches": "set budget and a small data.source",
    "limit_train_batches": "set budget",
    "limit_val_batches": "held-out data are scored in full; hold out less",
    "limit_test_batches": "there is no test loop; validate scores held-out data",
    "limit_predict_batches": "there is no predict loop; generate writes text",
    "use_distributed_sampler": "ranks share samples by index",
    "reload_dataloaders_every_n_epochs": "there is one endless epoch",
    "fast_dev_run": "add -c preset:overlay-smoke, ten steps of a small network",
    "barebones": "every part of a run is needed",
    "enable_model_summary": "the derived table counts parameters",
    "sync_batchnorm": "there is no batch normalisation",
    "gradient_clip_algorithm": "gradients are clipped by global norm on every strategy",
    "inference_mode": "validation always runs without gradients",
    "model_registry": "checkpoints are directories; upload them with a tool of your choice",
    "enable_autolog_hparams": "loggers receive the resolved configuration",
}
_FORBIDDEN_CALLBACKS = {
    "ModelCheckpoint": "set checkpoint.every",
    "OnExceptionCheckpoint": "set checkpoint.every",
    "GradientAccumulationScheduler": "accumulation follows from batch",
    "StochasticWeightAveraging": "it changes rates behind model.schedule; use EMAWeightAveraging",
    "ThroughputMonitor": "throughput is measured without synchronising every batch",
    "LearningRateFinder": "it trains before the run starts",
    "BatchSizeFinder": "the global batch is a contract",
}
_HOOKS = ("on_save_checkpoint", "on_load_checkpoint")


def replaced(settings: Settings) -> Iterator[str]:
    """Arguments that would be overwritten."""
    parameters = inspect.signature(Trainer).parameters
    for key, way_out in REPLACED.items():
        default = parameters[key].default
        value = settings.trainer_args.get(key, default)
        if value != default:
            yield f"trainer.{key}={_shown(value)} has no effect here: {way_out}"


def values(settings: Settings) -> Iterator[str]:
    """Arguments that Lightning would refuse only when the run starts, or never."""
    if abs(settings.seed) >= 1 << 63:
        yield f"seed={str(settings.seed)[:30]} does not fit into 64 bits; take a shorter number"
    limit = settings.trainer_args.get("max_time")
    try:
        Timer(duration=limit)
    except (MisconfigurationException, TypeError):
        yield f"trainer.max_time={limit} is not DD:HH:MM:SS; write 00:00:05:00 for five minutes"
    clip = settings.trainer_args.get("gradient_clip_val")
    if clip is not None and clip < 0:
        yield f"trainer.gradient_clip_val={clip} must not be negative; remove it for no clipping"
    profiler = settings.trainer_args.get("profiler")
    if isinstance(profiler, str) and profiler not in PROFILERS:
        yield f"trainer.profiler={profiler} is not one of {', '.join(PROFILERS)}"
    if isinstance(settings.trainer_args.get("logger"), bool):
        written = _shown(settings.trainer_args["logger"])
        yield f"trainer.logger={written} has no effect; remove it, or name loggers by class_path"


def precision(settings: Settings) -> Iterator[str]:
    """Precisions that keep the promises about master weights and reduction."""
    name = settings.precision
    if name not in PRECISIONS:
        yield f"trainer.precision={name} is not supported; choose {', '.join(PRECISIONS)}"
    if name == "16-mixed":
        yield from loss_scaling.problems(settings.context())


def callbacks(settings: Settings) -> Iterator[str]:
    """Callbacks that would undo what the run promises."""
    given = settings.trainer_args.get("callbacks") or []
    if not isinstance(given, list):
        yield "trainer.callbacks must be a list; put a dash before class_path"
        return
    traits = settings.strategy.traits(settings.world_size)
    whole = traits.one_model and not (traits.communicates_between_blocks or traits.flattens)
    for index, callback in enumerate(given):
        key = f"trainer.callbacks[{index}]"
        bases = [base.__name__ for base in type(callback).__mro__]
        if forbidden := next((name for name in bases if name in _FORBIDDEN_CALLBACKS), ""):
            yield f"{key}={forbidden} does not work here: {_FORBIDDEN_CALLBACKS[forbidden]}"
        elif (
            isinstance(callback, EarlyStopping)
            and callback.monitor not in (*MONITORS, *_of_each_set(settings))
            and type(settings.task) is Task  # another may measure more
        ):
            names = " or ".join(MONITORS)
            yield f"{key}: EarlyStopping.monitor={callback.monitor} is not measured; write {names}"
        elif not whole and any(is_overridden(hook, callback, Callback) for hook in _HOOKS):
            yield (
                f"{key}={bases[0]} keeps whole weights through on_save_checkpoint, which no rank "
                f"has under {traits.name}; use class_path: EMA, or trainer.strategy=ddp"
            )
        elif (
            isinstance(callback, WeightAveraging) and settings.task.optimizer_config.traits.averages
        ):
            name = settings.task.optimizer_config.traits.name
            yield (
                f"{key}={bases[0]} averages weights of which model.optimizer={name} keeps an "
                "average, which validations score; remove it, or use AdamW"
            )


def _of_each_set(settings: Settings) -> list[str]:
    """What is measured of each held-out set, where there are several and they are known."""
    source = settings.data.source
    names = source.held_out_sets() if source.prepared else ()
    kinds = ("loss", "perplexity", "bits_per_byte")
    return [f"val/{name}/{kind}" for name in names for kind in kinds if len(names) > 1]


def _shown(value: Any) -> str:
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)
