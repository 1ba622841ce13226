"""Finds every problem of a configuration at once, and prints every number that follows from it.

A parser sees one key at a time. What is left are rules between keys: batch against ranks, sequence
against network, precision against strategy, settings that would have no effect. ``problems`` collects
them all instead of stopping at the first, and touches no device.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import torch

from llm_train.data.prepare import Prepared
from llm_train.data.recipe import recipe_differences
from llm_train.data.token_shards import TokenShards
from llm_train.derived import Derived
from llm_train.errors import LLMTrainError
from llm_train.settings import Settings
from llm_train.strategy import Placement

STRATEGIES = ("auto", "single", "ddp", "fsdp", "zero1", "zero2", "zero3")
PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")

# Trainer arguments that another key replaces or that would break an invariant, with the way out.
_REPLACED = {
    "max_steps": "set budget, in steps or tokens",
    "max_epochs": "set budget, in steps or tokens",
    "min_epochs": "set budget, in steps or tokens",
    "min_steps": "set budget, in steps or tokens",
    "accumulate_grad_batches": "it follows from batch.tokens, batch.per_device and the number of ranks",
    "val_check_interval": "set validate_every, in steps or tokens",
    "check_val_every_n_epoch": "set validate_every, in steps or tokens",
    "enable_checkpointing": "set checkpoint",
    "num_sanity_val_steps": "held-out data are checked before the run starts",
    "overfit_batches": "set budget and a small data.source",
    "limit_train_batches": "set budget",
    "use_distributed_sampler": "ranks share samples by index",
    "reload_dataloaders_every_n_epochs": "there is one endless epoch",
    "fast_dev_run": "use --budget='2 steps'",
    "barebones": "every part of a run is needed",
    "enable_model_summary": "the derived table counts parameters",
    "sync_batchnorm": "there is no batch normalisation",
    "gradient_clip_algorithm": "gradients are clipped by global norm on every strategy",
    "inference_mode": "validation always runs without gradients",
    "deterministic": None,
}
_FORBIDDEN_CALLBACKS = {
    "ModelCheckpoint": "set checkpoint",
    "OnExceptionCheckpoint": "set checkpoint",
    "GradientAccumulationScheduler": "accumulation follows from batch",
    "StochasticWeightAveraging": "it changes learning rate and schedule behind model.schedule",
    "ThroughputMonitor": "throughput is measured without synchronising every batch",
    "LearningRateFinder": "it trains before the run starts",
    "BatchSizeFinder": "the global batch is a contract",
}


def problems(settings: Settings) -> list[str]:
    """All problems, one line each; empty means that the run can start."""
    found: list[str] = []
    for rule in (
        _batch,
        _network,
        _schedule,
        _trainer,
        _strategy,
        _precision,
        _callbacks,
        _data,
    ):
        try:
            found.extend(rule(settings))
        except LLMTrainError as error:
            found.append(str(error))
    return list(dict.fromkeys(found))


def derive(settings: Settings) -> Derived:
    """The numbers of the run for the ranks it will have."""
    return Derived.of(
        seed=settings.seed,
        batch=settings.batch,
        budget=settings.budget,
        validate_every=settings.validate_every,
        log_every=settings.trainer.get("log_every_n_steps") or 10,
        world_size=settings.world_size,
    )


def table(settings: Settings) -> dict[str, dict[str, Any]]:
    """Every derived number, by section, as plain values."""
    derived = derive(settings)
    counts = settings.task.counts
    batch = settings.batch
    optimizer: Any = settings.task.optimizer_config
    with torch.device("meta"):
        network = settings.task.network_config.build()
        groups = optimizer.build(network.named_parameters()).param_groups
    factor = derived.learning_rate_factor
    multiplier = settings.task.schedule.build(
        total_steps=derived.total_steps, tokens_per_step=derived.tokens_per_step
    )
    flops = counts.flops_per_token(batch.sequence, causal=True)
    return {
        "network": {
            "class": type(settings.task.network_config).__name__,
            "parameters": counts.parameters,
            "matmul_parameters": counts.matmul_parameters,
            "flops_per_token_causal": flops,
            "flops_per_token_non_causal": counts.flops_per_token(batch.sequence, causal=False),
            "flops_total": flops * derived.total_tokens,
        },
        "batch": {
            "tokens_per_step": (
                f"{derived.tokens_per_step} = {derived.world_size} ranks x {derived.accumulation} "
                f"micro-batches x {batch.per_device} samples x {batch.sequence} positions"
            ),
            "samples_per_step": derived.samples_per_step,
            "total_steps": derived.total_steps,
            "total_tokens": derived.total_tokens,
            "tokens_per_parameter": round(derived.total_tokens / counts.parameters, 3),
        },
        "learning_rate": {
            f"group_{i}": (
                f"peak {group['lr'] * factor:.6g} = {group['lr']:g} x {factor:.6g} "
                f"({batch.scaling.rule} scaling), weight decay {group.get('weight_decay', 0.0):g}, "
                f"{len(group['params'])} tensors, {sum(p.numel() for p in group['params'])} parameters"
            )
            for i, group in enumerate(groups)
        },
        "schedule": {
            "class": type(settings.task.schedule).__name__,
            "first_step": round(multiplier(0), 6),
            "middle": round(multiplier(derived.total_steps // 2), 6),
            "last_step": round(multiplier(derived.total_steps - 1), 6),
        },
        "run": {
            "directory": str(settings.run_dir),
            "strategy": strategy_name(settings),
            "precision": settings.trainer.get("precision") or "32-true",
            "gradient_clip": settings.trainer.get("gradient_clip_val") or "none",
            "seed": settings.seed,
            "validate_every": derived.validate_every or "end",
            "log_every": derived.log_every,
        },
        "data": settings.data.source.description() if not settings.data.source.check() else {},
    }


def strategy_name(settings: Settings) -> str:
    """The class that will run, whatever way it was written."""
    strategy = settings.trainer.get("strategy", "auto")
    if not isinstance(strategy, str):
        return type(strategy).__name__
    if strategy == "auto":
        return "DDP" if settings.world_size > 1 else "SingleDevice"
    names = {"single": "SingleDevice", "ddp": "DDP", "fsdp": "FSDP"}
    return names.get(strategy, "ZeRO")


def _batch(settings: Settings) -> Iterator[str]:
    derived = derive(settings)
    if derived.validate_every > derived.total_steps:
        yield (
            f"validate_every={settings.validate_every} is longer than the run of {derived.total_steps} "
            "steps and has no effect; shorten it or use '0 steps' to validate at the end"
        )
    every = settings.checkpoint.every.steps(settings.batch.tokens)
    keep = settings.checkpoint.keep_every.steps(settings.batch.tokens)
    if keep and (not every or keep % every):
        yield (
            f"checkpoint.keep_every={settings.checkpoint.keep_every} is not a multiple of "
            f"checkpoint.every={settings.checkpoint.every}, so some of those checkpoints are never written"
        )


def _network(settings: Settings) -> Iterator[str]:
    network = settings.task.network_config
    if settings.batch.sequence > network.max_positions:
        yield (
            f"batch.sequence={settings.batch.sequence} exceeds the {network.max_positions} positions of "
            "model.network; shorten the sequence or raise max_sequence"
        )


def _schedule(settings: Settings) -> Iterator[str]:
    derived = derive(settings)
    settings.task.schedule.build(
        total_steps=derived.total_steps, tokens_per_step=derived.tokens_per_step
    )
    yield from ()


def _trainer(settings: Settings) -> Iterator[str]:
    defaults = settings.trainer["__defaults__"]
    for key, way_out in _REPLACED.items():
        value = settings.trainer.get(key, defaults.get(key))
        if way_out is not None and value != defaults.get(key):
            yield f"trainer.{key}={value!r} has no effect here: {way_out}"
    clip = settings.trainer.get("gradient_clip_val")
    if clip is not None and clip < 0:
        yield f"trainer.gradient_clip_val={clip} must not be negative; remove it to switch clipping off"
    nodes = settings.trainer.get("num_nodes", 1)
    if nodes < 1:
        yield f"trainer.num_nodes={nodes} must be at least 1"
    if settings.trainer.get("accelerator") not in ("auto", "cpu", "gpu", "cuda"):
        accelerator = settings.trainer.get("accelerator")
        yield f"trainer.accelerator={accelerator!r} is not supported; choose auto, cpu or gpu"


def _strategy(settings: Settings) -> Iterator[str]:
    strategy = settings.trainer.get("strategy", "auto")
    if isinstance(strategy, str):
        if strategy not in STRATEGIES:
            yield (
                f"trainer.strategy={strategy!r} is not one of {', '.join(STRATEGIES)}; for options write "
                "class_path: DDP, FSDP or ZeRO with init_args"
            )
    elif not isinstance(strategy, Placement):
        yield (
            f"trainer.strategy={type(strategy).__name__} cannot place weights or save state exactly; "
            "use DDP, FSDP or ZeRO of llm_train"
        )
    name = strategy_name(settings)
    if name == "SingleDevice" and settings.world_size > 1:
        yield f"trainer.strategy=single cannot use {settings.world_size} ranks; choose ddp, fsdp or zero1-3"
    if name == "ZeRO" and importlib.util.find_spec("deepspeed") is None:
        yield "trainer.strategy=ZeRO needs DeepSpeed: pip install 'llm-train[deepspeed]', or choose ddp or fsdp"
    if name == "ZeRO" and not settings.data.source.dense:
        yield (
            "data.source marks some targets as ignored, and DeepSpeed reduces before they are counted; "
            "choose ddp or fsdp"
        )


def _precision(settings: Settings) -> Iterator[str]:
    precision = settings.trainer.get("precision") or "32-true"
    if str(precision) in ("32", "bf16"):
        precision = {"32": "32-true", "bf16": "bf16-mixed"}[str(precision)]
    if precision not in PRECISIONS:
        yield (
            f"trainer.precision={precision!r} is not supported (no loss scaling here); choose "
            f"{', '.join(PRECISIONS)}"
        )
    if precision == "bf16-true" and strategy_name(settings) == "ZeRO":
        yield (
            "trainer.precision='bf16-true' under ZeRO would still keep fp32 master weights; "
            "say bf16-mixed, which is what DeepSpeed does"
        )


def _callbacks(settings: Settings) -> Iterator[str]:
    for callback in settings.trainer.get("callbacks") or []:
        for base in type(callback).__mro__:
            if base.__name__ in _FORBIDDEN_CALLBACKS:
                way_out = _FORBIDDEN_CALLBACKS[base.__name__]
                yield f"trainer.callbacks: {base.__name__} does not work here: {way_out}"
                break


def _data(settings: Settings) -> Iterator[str]:
    source = settings.data.source
    missing = source.check()
    yield from missing
    if missing:
        return
    network = settings.task.network_config
    if source.vocab_size() > network.token_ids:
        yield (
            f"data.source has {source.vocab_size()} token ids but model.network knows {network.token_ids}; "
            f"set model.network.init_args.vocab_size to {source.vocab_size()}"
        )
    if isinstance(source, TokenShards) and not isinstance(settings.data.recipe, Prepared):
        for difference in recipe_differences(source.path, settings.data.recipe):
            yield f"data.recipe differs from what {source.path} was prepared with: {difference}"


