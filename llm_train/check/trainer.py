"""Rules about Lightning's Trainer arguments: which work here, and which another key replaces."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Iterator
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden

from llm_train.model.network.sdpa import FLASH3_PACKAGE
from llm_train.settings import Settings
from llm_train.trainer.strategy import Placement, SingleDevice

WHOLE = ("SingleDevice", "DDP", "LocalSGD")  # every rank holds all parameters, without hooks
STRATEGIES = ("auto", "single", "ddp", "fsdp", "hsdp", "tp", "zero1", "zero2", "zero3")
PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")
ACCELERATORS = ("auto", "cpu", "gpu", "cuda")
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
    "fast_dev_run": "use --budget='2 steps'",
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
    "StochasticWeightAveraging": "it changes learning rate and schedule behind model.schedule",
    "ThroughputMonitor": "throughput is measured without synchronising every batch",
    "LearningRateFinder": "it trains before the run starts",
    "BatchSizeFinder": "the global batch is a contract",
}


_UNCALLED_HOOKS = ("on_save_checkpoint", "on_load_checkpoint")


def strategy_name(settings: Settings) -> str:
    """The class that will run, whatever way it was written."""
    strategy = settings.trainer.get("strategy", "auto")
    if not isinstance(strategy, str):
        return type(strategy).__name__
    if strategy == "auto":
        return "DDP" if settings.world_size > 1 else "SingleDevice"
    names = {"single": "SingleDevice", "ddp": "DDP"} | dict.fromkeys(("fsdp", "hsdp", "tp"), "FSDP")
    return names.get(strategy, "ZeRO" if strategy.startswith("zero") else strategy)


def precision_of(settings: Settings) -> str:
    """The precision by its full name; Lightning also takes short ones."""
    precision = str(settings.trainer.get("precision") or "32-true")
    return {"32": "32-true", "bf16": "bf16-mixed"}.get(precision, precision)


def replaced(settings: Settings) -> Iterator[str]:
    """Arguments that would be overwritten."""
    parameters = inspect.signature(Trainer).parameters
    for key, way_out in REPLACED.items():
        default = parameters[key].default
        value = settings.trainer.get(key, default)
        if value != default:
            yield f"trainer.{key}={_shown(value)} has no effect here: {way_out}"


def values(settings: Settings) -> Iterator[str]:
    """Arguments that Lightning would refuse only when the run starts, or never."""
    clip = settings.trainer.get("gradient_clip_val")
    if clip is not None and clip < 0:
        yield (
            f"trainer.gradient_clip_val={clip} must not be negative; "
            "remove it to switch clipping off"
        )
    profiler = settings.trainer.get("profiler")
    if isinstance(profiler, str) and profiler not in PROFILERS:
        yield f"trainer.profiler={profiler} is not one of {', '.join(PROFILERS)}"
    if isinstance(settings.trainer.get("logger"), bool):
        yield (
            f"trainer.logger={_shown(settings.trainer['logger'])} has no effect: metrics.jsonl is "
            "always written; remove it, or name further loggers by class_path"
        )


def strategy(settings: Settings) -> Iterator[str]:
    """Strategies of ours only, and what each of them cannot do."""
    chosen = settings.trainer.get("strategy", "auto")
    if isinstance(chosen, str):
        if chosen not in STRATEGIES:
            yield (
                f"trainer.strategy={chosen} is not one of {', '.join(STRATEGIES)}; for options "
                "write class_path: DDP, FSDP, LocalSGD or ZeRO with init_args"
            )
            return
    elif not isinstance(chosen, Placement):
        yield (
            f"trainer.strategy={type(chosen).__name__} cannot place weights or save state exactly; "
            "use DDP, FSDP, LocalSGD or ZeRO of llm_train"
        )
        return
    if isinstance(chosen, SingleDevice) and (chosen.root_device.type == "cuda") != settings.on_cuda:
        yield (
            f"trainer.strategy.init_args.device={chosen.root_device} does not fit "
            f"trainer.accelerator={settings.trainer.get('accelerator')}; "
            "write trainer.strategy=single"
        )
    name = strategy_name(settings)
    if name == "SingleDevice" and settings.world_size > 1:
        yield (
            f"trainer.strategy=single cannot use {settings.world_size} ranks; "
            "choose ddp, fsdp or zero1-3"
        )
    if name == "ZeRO" and importlib.util.find_spec("deepspeed") is None:
        yield (
            "trainer.strategy=ZeRO needs DeepSpeed, which is not installed; "
            "pip install 'llm-train[deepspeed]', or choose ddp or fsdp"
        )


def precision(settings: Settings) -> Iterator[str]:
    """Precisions that keep the promises about master weights and reduction."""
    name = precision_of(settings)
    if name not in PRECISIONS:
        yield (
            f"trainer.precision={name} is not supported (no loss scaling here); choose "
            f"{', '.join(PRECISIONS)}"
        )
    if name == "bf16-true" and strategy_name(settings) == "ZeRO":
        yield (
            "trainer.precision=bf16-true under ZeRO would still keep fp32 master weights; "
            "write bf16-mixed, which is what DeepSpeed does"
        )


def compilation(settings: Settings) -> Iterator[str]:
    """Sharding hooks stand around every block and cannot be part of one graph."""
    name = strategy_name(settings)
    if settings.task.construction.compile == "network" and name not in WHOLE:
        yield (
            f"model.compile=network cannot be one graph under {name}, whose hooks stand between "
            "the blocks; write model.compile=blocks"
        )
    if settings.task.construction.compile == "graphs":
        yield from _graphs(settings, name)
    if settings.task.attention == "flash3" and importlib.util.find_spec(FLASH3_PACKAGE) is None:
        yield (
            f"model.attention=flash3 needs the package {FLASH3_PACKAGE}, which is not installed; "
            "install FlashAttention 3, or write auto"
        )
    if settings.task.attention != "auto" and not settings.on_cuda:
        yield (
            f"model.attention={settings.task.attention} has no effect on a CPU, which has one "
            "kernel; remove it"
        )


def _graphs(settings: Settings, name: str) -> Iterator[str]:
    """A replayed graph writes gradients to the same memory each time."""
    if not settings.on_cuda:
        yield (
            "model.compile=graphs has no effect on a CPU, which has no CUDA graphs; write "
            "model.compile=network"
        )
    if name != "SingleDevice":
        yield (
            f"model.compile=graphs works on one device, not under {name}; write "
            "model.compile=blocks"
        )
    micro_batches = settings.batch.tokens // (
        settings.batch.per_device * settings.batch.sequence * settings.world_size
    )
    if micro_batches > 1:
        yield (
            f"model.compile=graphs with {micro_batches} micro-batches a step would overwrite the "
            "gradients of the one before; raise batch.per_device until a step is one micro-batch, "
            "or write model.compile=network"
        )


def callbacks(settings: Settings) -> Iterator[str]:
    """Callbacks that would undo what the run promises."""
    given = settings.trainer.get("callbacks") or []
    if not isinstance(given, list):
        yield "trainer.callbacks must be a list; put a dash before class_path"
        return
    for index, callback in enumerate(given):
        for base in type(callback).__mro__:
            if base.__name__ in _FORBIDDEN_CALLBACKS:
                way_out = _FORBIDDEN_CALLBACKS[base.__name__]
                yield f"trainer.callbacks[{index}]={base.__name__} does not work here: {way_out}"
                break
        else:
            if any(is_overridden(hook, callback, Callback) for hook in _UNCALLED_HOOKS):
                yield (
                    f"trainer.callbacks[{index}]={type(callback).__name__} keeps its state through "
                    "on_save_checkpoint, and checkpoints here hold what state_dict returns; use "
                    "state_dict and load_state_dict"
                )


def _shown(value: Any) -> str:
    words = {True: "true", False: "false", None: "null"}
    return words[value] if value is None or isinstance(value, bool) else str(value)
