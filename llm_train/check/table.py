"""Every number that follows from the settings, by section, as arithmetic where that is short."""

import dataclasses
from bisect import bisect_left
from typing import Any

import torch
from torch import nn

from llm_train.derived import Derived
from llm_train.model.learning_rate import schedule_factor
from llm_train.model.network import sdpa
from llm_train.runtime.devices import device_named
from llm_train.settings import Settings
from llm_train.units import Duration, Scaling

_ASSUMED_MFU = 0.4
_REFERENCE_DEVICES = ("NVIDIA A100", "NVIDIA H100 80GB HBM3")


def table(settings: Settings, device: torch.device | None = None) -> dict[str, dict[str, Any]]:
    """Every derived number, by section, as plain values.

    Args:
        settings: what was configured.
        device: of this rank; None for the first device that a run would use.

    Raises:
        ConfigError: the configured attention kernel cannot run on the device, which is here.
    """
    return table_of(settings, settings.derive(), device)


def table_of(
    settings: Settings, derived: Derived, device: torch.device | None = None
) -> dict[str, dict[str, Any]]:
    """As ``table``, of a run that may have begun with another batch."""
    kernel = _attention(settings, derived, device or torch.device(settings.world.device))
    return {
        "network": _network(settings, derived) | {"attention": kernel},
        "batch": _batch(settings, derived),
        "learning rate": _learning_rate(settings, derived),
        "schedule": _schedule(settings, derived),
        "run": _run(settings, derived),
        "device": _device(settings),
        "time": _time(settings, derived),
        "data": _data(settings, derived),
    }


def _network(settings: Settings, derived: Derived) -> dict[str, Any]:
    counts = settings.task.counts
    flops = counts.flops_per_token(derived.sequence, causal=True)
    modules = settings.context().network.modules()
    tables = {module.weight for module in modules if isinstance(module, nn.Embedding)}
    embedding = sum(table.numel() for table in tables)
    return {
        "class": type(settings.task.network_config).__name__,
        "parameters": counts.parameters,
        "parameters_embedding": embedding,
        "parameters_without_embedding": counts.parameters - embedding,
        "parameters_matmul": counts.matmul_parameters(derived.sequence),
        "flops_per_token_causal": flops,
        "flops_per_token_non_causal": counts.flops_per_token(derived.sequence, causal=False),
        "flops_total_causal": f"{_flops_in_all(settings, derived):.3e}",
        "recompute": type(settings.task.construction.recompute).__name__,
        "compile": settings.task.construction.compile,
        "float8": settings.task.construction.float8,
    }


def _flops_in_all(settings: Settings, derived: Derived) -> float:
    flops = settings.task.counts.flops_per_token
    return sum(flops(length) * tokens for length, tokens in derived.lengths().items())


def _attention(settings: Settings, derived: Derived, device: torch.device) -> str:
    """The kernel that torch chooses on ``device``, if it is here to be asked about."""
    task = settings.task
    if device.type != "cuda":
        return task.attention  # one kernel; asking for its name would import the compiler
    if not torch.cuda.is_available():
        return f"{task.attention}; there is no device here to ask"
    network, precision = task.network_config, settings.precision
    apart = task.documents
    kernels = sdpa.chosen(task.attention, network, derived.sequence, precision, device, apart)
    return ", ".join(kernels) or "unknown"


def _batch(settings: Settings, derived: Derived) -> dict[str, Any]:
    parameters = settings.task.counts.parameters
    ranks = f"{derived.ranks} ranks"
    if derived.data_ranks != derived.ranks:
        ranks = f"{derived.data_ranks} groups of {derived.ranks // derived.data_ranks} ranks"
    rows = {
        "tokens_per_step": (
            f"{derived.tokens_per_step:,} = {ranks} x {derived.accumulation} "
            f"micro-batches x {derived.per_device} samples x {derived.sequence} positions"
        ),
        "samples_per_step": derived.samples_per_step,
        "total_steps": derived.total_steps,
        "total_tokens": derived.total_tokens,
        "tokens_per_parameter": round(derived.total_tokens / parameters, 3),
    }
    if len(lengths := derived.lengths()) > 1:
        parts = [f"{length} for {tokens:,} tokens" for length, tokens in lengths.items()]
        rows["positions_per_sequence"] = ", then ".join(parts)
    for stage in derived.stages if len(derived.stages) > 1 else ():
        rows[f"from_step_{stage.first_step}"] = (
            f"{stage.tokens_per_step:,} tokens in {stage.accumulation} micro-batches, learning "
            f"rate x {stage.learning_rate_factor:.6g}"
        )
    return rows


def _learning_rate(settings: Settings, derived: Derived) -> dict[str, Any]:
    built = settings.context().torch_optimizer
    scaling, factor = settings.batch.scaling, derived.learning_rate_factor
    rows: dict[str, Any] = {
        "optimizer": settings.task.optimizer_config.traits.name,
        "scaling": _scaling(scaling, derived.tokens_per_step, factor),
    }
    for index, group in enumerate(built.param_groups):
        rows[f"group_{index}"] = (
            f"peak {group['lr'] * factor:.6g} = {group['lr']:g} x {factor:.6g}, "
            f"weight decay {group.get('weight_decay', 0.0):g}, {len(group['params'])} tensors, "
            f"{sum(p.numel() for p in group['params']):,} parameters{_own(group)}"
        )
    return rows


def _own(group: dict[str, Any]) -> str:
    """What a group has for itself, by the names of its parameters."""
    factor, clip = group.get("rate_factor"), group.get("clip_pattern")
    own = f", rate x {factor:g}" if factor is not None else ""
    own += f", clipped to {group['clip_norm']:g} with all of {clip}" if clip else ""
    return own and f"{own} ({group['param_names'][0]} and others like it)"


def _scaling(scaling: Scaling, tokens: int, factor: float) -> str:
    if scaling.rule == "none":
        return "none: the configured learning rate is the peak"
    ratio = f"{tokens:,} / {scaling.reference_tokens:,} tokens"
    formula = f"sqrt({ratio})" if scaling.rule == "sqrt" else ratio
    return f"{scaling.rule}: x {formula} = {factor:.6g}"


def _schedule(settings: Settings, derived: Derived) -> dict[str, Any]:
    schedule: Any = settings.task.schedule
    total = derived.total_steps
    rows: dict[str, Any] = {"class": type(schedule).__name__}
    for field in dataclasses.fields(schedule) if dataclasses.is_dataclass(schedule) else ():
        value = getattr(schedule, field.name)
        rows[field.name] = _phase(field.name, value, derived)
    steps = {"first_step": 0, "middle": total // 2, "last_step": total - 1}
    factors = {name: schedule_factor(schedule, derived, step) for name, step in steps.items()}
    return rows | {f"factor_{name}": round(factor, 6) for name, factor in factors.items()}


def _phase(name: str, value: object, derived: Derived) -> object:
    """A setting of a schedule; under a ramp, how many steps it has depends on where it begins."""
    if not isinstance(value, Duration):
        return value
    if len(derived.stages) == 1 or value.unit == "steps":
        return _steps(value, derived)
    steps = bisect_left(range(derived.total_steps), value.count, key=derived.tokens)
    return f"{steps:,} steps ({value})" if name == "warmup" else str(value)


def _steps(duration: Duration, derived: Derived) -> str:
    steps = duration.steps(derived.tokens_per_step)
    return f"{steps:,} steps" + ("" if duration.unit == "steps" else f" ({duration})")


def _run(settings: Settings, derived: Derived) -> dict[str, Any]:
    policy = settings.checkpoint
    every, keep = (_steps(duration, derived) for duration in (policy.every, policy.keep_every))
    check = _steps(settings.validate_every, derived)
    limit = settings.data.held_out_limit(derived.sequence)
    most = f"{limit * derived.sequence:,} of each held-out set, in {limit:,} windows"
    return {
        "directory": str(settings.run_dir),
        "ranks": derived.ranks,
        "accelerator": settings.accelerator.type,
        "strategy": settings.strategy.traits(derived.ranks).name,
        "precision": settings.precision,
        "gradient_clip": settings.trainer_args.get("gradient_clip_val") or "none",
        "seed": str(derived.seed),
        "validate_every": check if derived.validate_every else "at the end",
        **({"validate_tokens": f"at most {most}"} if limit else {}),
        "checkpoint_every": every if policy.every.count else "at the end",
        "checkpoints_kept": f"the newest {policy.keep_last}"
        + (f", and every {keep}" if policy.keep_every.count else ""),
        "log_every": f"{derived.log_every:,} steps",
    }


def _device(settings: Settings) -> dict[str, Any]:
    """How the devices are used; what ranks wait for each other, where they do."""
    rows: dict[str, Any] = settings.device.described(settings.accelerator)
    timeout = settings.strategy.timeout
    return rows | ({} if timeout is None else {"timeout_minutes": timeout.total_seconds() / 60})


def _time(settings: Settings, derived: Derived) -> dict[str, Any]:
    """Hours at an assumed utilisation, on the device here or, without one, on two known ones."""
    if settings.accelerator.type != "cuda":
        return {}
    names = [torch.cuda.get_device_name(0)] if settings.accelerator.count else _REFERENCE_DEVICES
    dtype = settings.product_dtype
    flops = _flops_in_all(settings, derived)
    rows: dict[str, Any] = {}
    for name in names:
        device = device_named(name)
        if device is not None and (peak := device.peak_flops(dtype)):
            hours = flops / (derived.ranks * peak * _ASSUMED_MFU) / 3600
            assumed = f"an MFU of {_ASSUMED_MFU:.0%} against {peak / 1e12:g} TFLOP/s {dtype}"
            rows[f"hours on {derived.ranks} x {name}"] = f"{hours:.3g}, assuming {assumed}"
    return rows


def _data(settings: Settings, derived: Derived) -> dict[str, Any]:
    source = settings.data.source
    if source.check():
        return {}
    described: dict[str, Any] = source.description() | source.window_facts(derived.sequence)
    tokens = described.get("train_tokens")
    if isinstance(windows := described.get("packed_windows"), int):
        tokens = windows * derived.sequence  # with the places that are left empty
    if isinstance(tokens, int) and tokens:
        described["epochs"] = round(derived.total_tokens / tokens, 3)
    return described
