"""Builds a Trainer from settings: the user's arguments plus those that the settings imply."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException

from llm_train.checkpoint.loop_position import set_accumulation
from llm_train.data.sampler import Share
from llm_train.derived import Derived
from llm_train.errors import ConfigError
from llm_train.model.lightning_shortcuts import NoProfiler, trim
from llm_train.runtime.devices import device_named
from llm_train.runtime.host_memory import keep_freed_memory
from llm_train.runtime.launch import Launch
from llm_train.runtime.quiet import without_advice
from llm_train.runtime.srun import Srun
from llm_train.settings import Settings
from llm_train.trainer.callbacks import GarbageCollection, GracefulStop, Metrics, Progress
from llm_train.trainer.callbacks.averaging import OptimizersAverage
from llm_train.trainer.logger.base import attach
from llm_train.trainer.logger.jsonl import JSONLMetrics
from llm_train.trainer.loss_scaling import LossScaling


def build_trainer(
    settings: Settings,
    derived: Derived,
    callbacks: list[pl.Callback],
    metrics: JSONLMetrics | None,
) -> pl.Trainer:
    """Constructs the Trainer, and tells task and data what a rank of it works on.

    Args:
        settings: what was configured.
        derived: the numbers of the run.
        callbacks: come last in the list, after the user's and ours.
        metrics: the logger that every training has; None where nothing is trained or logged.
    """
    if settings.accelerator.type == "cpu":
        keep_freed_memory()
    if settings.trainer_args.get("deterministic"):
        _compile_deterministically()
    arguments = dict(settings.trainer_args)
    wanted = settings.trainer_args.get("devices")
    loggers = [] if metrics is None else [metrics, *settings.loggers]
    attach(loggers, settings.run_dir)
    accumulation = derived.stages[0].accumulation
    arguments.update(
        accelerator=settings.accelerator.type,
        strategy=settings.strategy,
        devices=wanted if isinstance(wanted, list) else settings.devices,
        num_nodes=settings.world.nodes,
        plugins=[*settings.plugins, _environment(settings.launch)],
        max_steps=derived.total_steps,
        max_epochs=-1,
        accumulate_grad_batches=accumulation,
        val_check_interval=(derived.validate_every or derived.total_steps) * accumulation,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=derived.log_every,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,  # Lightning's, which reads a metric from the device every batch
        use_distributed_sampler=False,
        # Tensors made in it, as all weights are where a run only validates, cannot be loaded into
        # on torch 2.11 once they are sharded; nor are their changes counted, which shadows need.
        inference_mode=False,
        default_root_dir=str(settings.run_dir),
        # Checkpoints come last: what other callbacks do at a step boundary belongs to the step.
        callbacks=[*_callbacks(settings), *callbacks],
        logger=loggers or False,
    )
    if settings.precision == "16-mixed":
        _scale_loss(settings, arguments)
    if arguments.get("profiler") is None:
        arguments["profiler"] = NoProfiler(settings.task.run_state.ledger)
    trainer = pl.Trainer(**arguments)
    trim(trainer)  # a search for arguments that Lightning repeats for every batch
    assert trainer.world_size == derived.ranks, "the number of ranks was derived wrongly"
    _bind(settings, derived, trainer.global_rank)
    return trainer


def _compile_deterministically() -> None:
    """Or torch's compiler would choose kernels by timing them, and so the order of a sum."""
    import torch._inductor.config  # the compiler's, which few runs with this need

    torch._inductor.config.deterministic = True


def _callbacks(settings: Settings) -> list[pl.Callback]:
    """The user's, and ours but for checkpoints."""
    every = [OptimizersAverage(), GracefulStop(), GarbageCollection()]
    shown = settings.trainer_args.get("enable_progress_bar") is not False
    return [
        Metrics(
            settings.task.counts.flops_per_token,
            _peak(settings),
            compare_replicas=settings.checkpoint.compare_replicas,
        ),
        *settings.callbacks,
        *every,
        *([Progress()] if shown else []),
    ]


def _scale_loss(settings: Settings, arguments: dict[str, Any]) -> None:
    """Trains in float16 by our plugin: Lightning would take bf16-mixed on a CPU."""
    scaling = LossScaling(settings.accelerator.type)
    settings.task.run_state.riders.append(scaling)
    arguments["plugins"].append(scaling)
    arguments["precision"] = None


def _bind(settings: Settings, derived: Derived, rank: int) -> None:
    lengths = settings.data.source.token_bytes()
    settings.task.bind(
        derived,
        unmasked=settings.unmasked,
        token_bytes=None if lengths is None else torch.from_numpy(lengths),
        end_of_text=settings.data.source.end_of_text(),
    )
    _bind_data(settings, derived, rank)


def _bind_data(settings: Settings, derived: Derived, rank: int) -> None:
    share = Share(
        rank=rank // settings.mesh_shape.tensor,
        data_ranks=derived.data_ranks,
        per_device=derived.per_device,
        accumulation=max(stage.accumulation for stage in derived.stages),
    )
    settings.task.run_state.realised = partial(
        settings.data.source.realised, sequence=derived.sequence
    )
    settings.data.bind(
        share=share,
        sequence=derived.sequence,
        seed=derived.seed,
        steps_total=derived.total_steps,
        pin_memory=settings.accelerator.pinned,
    )


def rebind(settings: Settings, derived: Derived, trainer: pl.Trainer, step: int) -> None:
    """Tells task, data and Trainer other numbers of a run that is to go on after ``step`` steps."""
    settings.task.rederive(derived)
    _bind_data(settings, derived, trainer.global_rank)
    trainer.fit_loop.epoch_loop.max_steps = derived.total_steps
    set_accumulation(trainer, derived, step)


def _environment(launch: Launch) -> ClusterEnvironment:
    """The environment of ``launch``; Lightning might detect another one by itself."""
    if launch.kind == "torchrun":
        return TorchElasticEnvironment()
    return Srun(launch) if launch.kind == "srun" else LightningEnvironment()


def _peak(settings: Settings) -> float:
    if settings.accelerator.type != "cuda" or not settings.accelerator.count:
        return 0.0
    device = device_named(torch.cuda.get_device_name(0))
    return 0.0 if device is None else device.peak_flops(settings.product_dtype)


@contextmanager
def lightning_errors() -> Iterator[None]:
    """Hides its advice, and reports a combination that only it knows like any wrong setting."""
    try:
        with without_advice():
            yield
    except MisconfigurationException as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"trainer: Lightning refuses these settings: {reason}") from error
