"""Rules about Lightning's Trainer arguments: which work here, and which another key replaces."""

import inspect
import json
from collections.abc import Iterator

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer, WeightAveraging
from lightning.pytorch.utilities.model_helpers import is_overridden

from llm_train.model.task import Task
from llm_train.runtime.quiet import without_advice
from llm_train.settings import Settings
from llm_train.trainer import loss_scaling

PRECISIONS = ("32-true", "bf16-mixed", "bf16-true", "16-mixed")
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")
MONITORS = ("val/loss", "val/perplexity", "val/bits_per_byte")
PROFILERS = ("simple", "advanced", "pytorch")

# Trainer arguments that another key replaces or that would break an invariant, with the way out.
_BUDGET = "write --budget='1000 steps', or tokens as in '1B tokens'"
_OF_BATCH = "it follows from batch.tokens, batch.per_device and the number of ranks; remove it"
_VALIDATE = "write --validate_every='100 steps', or tokens as in '1M tokens'"
_SAVE = "write --checkpoint.every='100 steps', or '0 steps' to save at the end only"
REPLACED = {
    "max_steps": _BUDGET,
    "max_epochs": _BUDGET,
    "min_epochs": _BUDGET,
    "min_steps": _BUDGET,
    "accumulate_grad_batches": _OF_BATCH,
    "val_check_interval": _VALIDATE,
    "check_val_every_n_epoch": _VALIDATE,
    "enable_checkpointing": _SAVE,
    "num_sanity_val_steps": "held-out data are checked before the run starts; remove it",
    "overfit_batches": (
        "to learn few tokens by heart, write --data.source=RandomTokens --data.source.length=4096 "
        "--data.source.vocabulary=50 --data.recipe=Prepared"
    ),
    "limit_train_batches": _BUDGET,
    "limit_val_batches": "write --data.validate_tokens='1M tokens'",
    "limit_test_batches": "llm-train validate scores held-out data; remove it",
    "limit_predict_batches": "llm-train generate writes text; remove it",
    "use_distributed_sampler": "ranks share samples by index; remove it",
    "reload_dataloaders_every_n_epochs": "there is one endless epoch; remove it",
    "fast_dev_run": "llm-train doctor takes one real step and leaves nothing behind; remove it",
    "barebones": "every part of a run is needed; remove it",
    "enable_model_summary": "the derived table counts parameters; remove it",
    "sync_batchnorm": "there is no batch normalisation; remove it",
    "gradient_clip_algorithm": "gradients are clipped by global norm everywhere; remove it",
    "inference_mode": "validation always runs without gradients; remove it",
    "model_registry": "checkpoints are uploaded to --checkpoint.remote=URL; remove it",
    "enable_autolog_hparams": "loggers receive the resolved configuration; remove it",
}
_FORBIDDEN_CALLBACKS = {
    "ModelCheckpoint": (
        "write --checkpoint.every='100 steps' --validate_every='100 steps' "
        "--checkpoint.best=val/loss, which keeps the best as well"
    ),
    "Checkpoint": _SAVE,
    "BaseFinetuning": (
        "it freezes parameters and adds groups to the optimizer, which has all of them; remove it, "
        "and hold parameters with model.optimizer=Grouped and rates of 0"
    ),
    "ModelPruning": "it looks for weights before a run has made them; remove it",
    "GradientAccumulationScheduler": _OF_BATCH,
    "StochasticWeightAveraging": "it changes rates behind model.schedule; write class_path: EMA",
    "SpikeDetection": "nothing reads what it finds; write class_path: Guard",
    "ThroughputMonitor": "throughput is measured without waiting for every batch; remove it",
    "LearningRateFinder": (
        "it trains before the run starts; write --model.schedule=RangeTest, train a short run, and "
        "llm-train advise RUN reads the rate off"
    ),
    "BatchSizeFinder": "the global batch is a contract; write --batch.on_out_of_memory=halve",
    "BasePredictionWriter": "there is no predict loop; remove it",
    "ProgressBar": "a run draws a bar of its own, which never waits for the device; remove it",
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
    if limit is not None and any(isinstance(each, Timer) for each in settings.callbacks):
        yield f"trainer.max_time={limit} has no effect with the callback Timer; remove one of them"
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
        name = type(callback).__name__
        if way_out := _forbidden(callback):
            yield f"{key}={name} does not work here: {way_out}"
        elif (
            isinstance(callback, EarlyStopping)
            and callback.monitor not in measured(settings)
            and type(settings.task) is Task  # another may measure more
        ):
            names = " or ".join(MONITORS)
            yield f"{key}: EarlyStopping.monitor={callback.monitor} is not measured; write {names}"
        elif isinstance(callback, EarlyStopping) and not settings.validate_every.count:
            yield (
                f"{key}={name} has no effect with validate_every={settings.validate_every}, at "
                "the end only; write --validate_every='100 steps', for instance"
            )
        elif not whole and any(is_overridden(hook, callback, Callback) for hook in _HOOKS):
            yield (
                f"{key}={name} keeps whole weights through on_save_checkpoint, which no rank "
                f"has under {traits.name}; use class_path: EMA, or trainer.strategy=ddp"
            )
        elif (
            isinstance(callback, WeightAveraging) and settings.task.optimizer_config.traits.averages
        ):
            optimizer = settings.task.optimizer_config.traits.name
            yield (
                f"{key}={name} averages weights of which model.optimizer={optimizer} keeps an "
                "average, which validations score; remove it, or use AdamW"
            )


def _forbidden(callback: object) -> str:
    """What to do instead of a callback; "" if it works."""
    bases = [base.__name__ for base in type(callback).__mro__]
    return next((_FORBIDDEN_CALLBACKS[name] for name in bases if name in _FORBIDDEN_CALLBACKS), "")


def epochs(settings: Settings) -> Iterator[str]:
    """Settings of callbacks that wait for the end of an epoch, which is the end of the run."""
    given = settings.plain.get("trainer", {}).get("callbacks") or []
    for index, callback in enumerate(given if isinstance(given, list) else []):
        for name, value in (callback.get("init_args") or {}).items():
            if value == "epoch" or (name == "check_on_train_epoch_end" and value):
                yield (
                    f"trainer.callbacks[{index}].init_args.{name}={_shown(value)} has no effect "
                    "before the end, since a run is one endless epoch; remove it"
                )


def of_lightning(settings: Settings) -> Iterator[str]:
    """What Lightning itself refuses of callbacks and plugins, whatever the devices."""
    callbacks = [each for each in settings.callbacks if not _forbidden(each)]
    try:
        with without_advice():
            Trainer(
                accelerator="cpu",
                devices=1,
                callbacks=callbacks,
                plugins=settings.plugins,
                logger=False,
                enable_checkpointing=False,
                enable_model_summary=False,
                enable_progress_bar=False,
            )
    except (MisconfigurationException, RuntimeError, TypeError, ValueError) as error:
        yield f"trainer: Lightning refuses these settings: {' '.join(str(error).split())}"


def measured(settings: Settings) -> list[str]:
    """What validations measure, also of each held-out set, where several are known."""
    source = settings.data.source
    names = source.held_out_sets() if source.prepared else ()
    kinds = ("loss", "perplexity", "bits_per_byte")
    of_each = [f"val/{name}/{kind}" for name in names for kind in kinds if len(names) > 1]
    return [*MONITORS, *of_each]


def _shown(value: object) -> str:
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)
