"""What DeepSpeed is told: what follows from other settings, and what ``config`` adds to it.

What is unusual: nothing is passed on unseen. DeepSpeed ignores a key that it does not know, or
fails over it long after the start. So ``config`` is held against the schema that DeepSpeed has of
each section, and a key that has a place elsewhere in a configuration is refused with that place.
"""

import difflib
import importlib
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import optim

from llm_train.context import Context
from llm_train.errors import ConfigError, check_at_least, missing_package
from llm_train.runtime.extras import library

KEY = "trainer.strategy.init_args"
BUCKET = 200_000_000
# DeepSpeed's keys -> where the same is said here; "" where it cannot be otherwise.
_PLACES = {
    **dict.fromkeys(("bf16", "fp16", "amp", "data_types", "torch_autocast"), "trainer.precision"),
    **dict.fromkeys(("tensorboard", "wandb", "csv_monitor", "comet"), "trainer.logger"),
    **dict.fromkeys(("train_batch_size", "gradient_accumulation_steps"), "batch.tokens"),
    "train_micro_batch_size_per_gpu": "batch.per_device",
    "gradient_clipping": "trainer.gradient_clip_val",
    "steps_per_print": "trainer.log_every_n_steps",
    "optimizer": "model.optimizer",
    "scheduler": "model.schedule",
    "activation_checkpointing": "model.recompute",
    "compile": "model.compile",
    "checkpoint": "checkpoint",
    "zero_allow_untested_optimizer": "",
    "zero_force_ds_cpu_optimizer": "",
    "zero_optimization.offload_param": f"{KEY}.offload_parameters",
    "zero_optimization.zero_hpz_partition_size": f"{KEY}.hpz_partition_size",
}
OWN = (
    *("stage", "offload_optimizer", "reduce_bucket_size", "allgather_bucket_size"),
    *("overlap_comm", "contiguous_gradients", "sub_group_size"),
)
_PLACES |= {f"zero_optimization.{name}": f"{KEY}.{name}" for name in OWN}
_SECTIONS = {
    "zero_optimization": ("deepspeed.runtime.zero.config", "DeepSpeedZeroConfig"),
    "comms_logger": ("deepspeed.comm.config", "CommsLoggerConfig"),
}
# Keys of the section zero_optimization that only some stages read.
_STAGE_3 = (
    *("zero_quantized_weights", "zero_quantized_nontrainable_weights", "zero_quantized_gradients"),
    *("memory_efficient_linear", "pipeline_loading_checkpoint", "override_module_apply"),
    *("log_trace_cache_warnings", "enable_sanity_checks", "leaf_module"),
)
_BELOW_3 = (
    *("round_robin_gradients", "ignore_unused_parameters", "use_multi_rank_bucket_allreduce"),
    *("allgather_partitions", "parameter_alignment", "legacy_stage1"),
)
# Keys outside all sections that have no place here, with the values that they take.
_SINGLE = {
    "communication_data_type": ("fp32", "bf16", "fp16"),
    **dict.fromkeys(
        ("prescale_gradients", "wall_clock_breakdown", "memory_breakdown"), (False, True)
    ),
}


def check_sizes(zero: object) -> None:
    """Refuses numbers that are no sizes.

    Raises:
        ConfigError: there is one.
    """
    sizes = ("reduce_bucket_size", "allgather_bucket_size", "hpz_partition_size")
    check_at_least(zero, 1, *sizes, prefix=f"{KEY}.", hint="; it is a count")
    if (size := vars(zero)["allgather_bucket_size"]) % 2:
        raise ConfigError(
            f"{KEY}.allgather_bucket_size={size} is odd, and DeepSpeed aligns buckets to pairs; "
            f"write {size + 1}"
        )
    check_at_least(zero, 0, "sub_group_size", prefix=f"{KEY}.", hint="; 0 chooses one")


def partition_problems(zero: Mapping[str, Any], ranks: int) -> Iterator[str]:
    """Sizes that have no effect, or do not divide ``ranks``."""
    hpz = zero["hpz_partition_size"]
    below = zero["stage"] < 3
    unused = {"sub_group_size": 0, "hpz_partition_size": 1}
    for name, default in (unused if below else {"allgather_bucket_size": BUCKET}).items():
        if zero[name] != default:
            where = "below stage 3" if below else "at stage 3"
            yield f"{KEY}.{name}={zero[name]} has no effect {where}; remove it"
    if not below and ranks % hpz:
        divide = f"does not divide the {ranks} ranks"
        yield f"{KEY}.hpz_partition_size={hpz} {divide}; use the devices of a node"


def optimizer_problems(stage: int, context: Context) -> Iterator[str]:
    """Where DeepSpeed lets an optimizer work as it was not made to."""
    name = context.optimizer.name
    if isinstance(context.torch_optimizer, optim.Adagrad):
        # All parameters would be in one group, norms and biases decaying with the matrices.
        made_anew = "is constructed anew by DeepSpeed, which knows it, without its groups"
        yield f"model.optimizer={name} {made_anew}; set trainer.strategy to ddp or fsdp"
    elif stage == 3 and context.optimizer.flat_fragments and not context.optimizer.one_by_one:
        # A count of steps that belongs to a group goes up whenever another group is updated.
        together = "updates parameters together, and ZeRO's stage 3 each group by itself"
        yield f"model.optimizer={name} {together}; set trainer.strategy to zero2, or use AdamW"


def offload_problems(zero: Mapping[str, Any], context: Context) -> Iterator[str]:
    """Where DeepSpeed cannot offload."""
    for name in ("offload_optimizer", "offload_parameters"):
        written = f"{KEY}.{name}={zero[name]}"
        if zero[name] != "none" and context.accelerator.type == "cpu":
            yield f"{written} has no effect on a CPU, where all memory is the host's; remove it"
    if zero["stage"] < 3 and zero["offload_parameters"] != "none":
        # Below stage 3 all parameters stay on the device.
        yield f"{KEY}.offload_parameters=cpu needs stage 3; set {KEY}.stage=3, or offload less"


def problems(config: Mapping[str, Any], stage: int, context: Context) -> Iterator[str]:
    """What of ``config`` DeepSpeed or this framework does not know, or this stage does not read."""
    if missing := missing_package("deepspeed", "deepspeed", "trainer.strategy=ZeRO"):
        yield missing
        return
    for key, value in config.items():
        written = f"{KEY}.config.{key}"
        if key in _PLACES:
            yield _elsewhere(written, key)
        elif key in _SECTIONS:
            yield from _section(key, value, stage, context)
        elif key not in _SINGLE:
            yield f"{written} is not passed on to DeepSpeed{_nearest(key, [*_SECTIONS, *_SINGLE])}"
        elif value not in _SINGLE[key]:
            yield f"{written}={value}: one of {', '.join(map(str, _SINGLE[key]))}; choose one"


def _section(name: str, given: object, stage: int, context: Context) -> Iterator[str]:
    """What a section's schema refuses, and what the stage does not read."""
    import_deepspeed(context.accelerator.type)
    from pydantic import ValidationError

    written = f"{KEY}.config.{name}"
    module, attribute = _SECTIONS[name]
    schema: Any = getattr(importlib.import_module(module), attribute)
    if not isinstance(given, Mapping):
        yield f"{written}={given} is a section of DeepSpeed; write its keys under it"
        return
    for key in given:
        if f"{name}.{key}" in _PLACES:
            yield _elsewhere(f"{written}.{key}", f"{name}.{key}")
        elif name == "zero_optimization" and key in _unread(schema.model_fields, stage):
            yield f"{written}.{key} has no effect at stage {stage}; remove it"
    try:
        schema(**given)
    except ValidationError as error:
        for fault in error.errors():
            place = ".".join(map(str, fault["loc"]))
            if fault["type"] == "extra_forbidden":
                known = [field.alias or key for key, field in schema.model_fields.items()]
                yield f"{written}.{place} is no key of DeepSpeed{_nearest(place, known)}"
            else:
                yield f"{written}.{place}={fault['input']}: {fault['msg']}; correct it"


def _unread(fields: Mapping[str, Any], stage: int) -> list[str]:
    """Keys that a stage does not read."""
    if stage == 3:
        return list(_BELOW_3)
    aliases = {key: str(field.alias) for key, field in fields.items()}
    marked = {key: alias for key, alias in aliases.items() if alias.startswith("stage3_")}
    return [*_STAGE_3, *marked, *marked.values()]


def _elsewhere(written: str, key: str) -> str:
    place = _PLACES[key]
    return f"{written} is " + (f"{place} here; set that instead" if place else "fixed; remove it")


def _nearest(key: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(key, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else "; remove it"


def completed(base: Mapping[str, Any], config: Mapping[str, Any], *, mixed: bool) -> dict[str, Any]:
    """What DeepSpeed is given.

    Args:
        base: as Lightning makes it.
        config: what is added to it, by section.
        mixed: whether products are in bf16.
    """
    # There is no scaler to tell, and each check waits for the device. What is not finite ends the
    # run at the next log point, as under every strategy.
    fixed = {
        "bf16": {"enabled": mixed, "check_grad_overflow": False},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        "communication_data_type": "fp32",
    }
    made = {**base, **fixed}
    for key, value in config.items():
        made[key] = {**made.get(key, {}), **value} if isinstance(value, Mapping) else value
    return made


def import_deepspeed(device: str) -> None:
    """Imports it for the device of the run; it asks the environment for one while imported.

    Raises:
        ConfigError: it is not installed.
    """
    if device == "cpu":  # whether or not this machine has something else
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    deepspeed = library("deepspeed", "deepspeed", "trainer.strategy=ZeRO")
    if device == "cpu":
        # DeepSpeed would ask the compiler what it can build, and build a kernel for inference. A
        # process killed meanwhile leaves a lock, for which all later ones wait in silence.
        vars(deepspeed.ops)["__compatible_ops__"] = defaultdict(bool)
