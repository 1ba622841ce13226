"""Rules about the optimizer: what it needs of precision, strategy, batch and of the network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llm_train.check.table import derive, stand_ins
from llm_train.check.trainer import precision_of
from llm_train.model.optimizer import LowBitAdamW, MuonAdamW
from llm_train.settings import Settings

_IN_BACKWARD = "model.update=backward"


def build(settings: Settings) -> Iterator[str]:
    """Whether the optimizer takes these parameters, and has something to do; without memory."""
    optimizer: Any = settings.task.optimizer_config
    parameters = stand_ins(settings)
    optimizer.build(parameters)
    if not isinstance(optimizer, LowBitAdamW) or optimizer.state == "bf16":
        return
    if not any(optimizer.quantizes(p) for _, p in parameters if p.requires_grad):
        yield (
            f"model.optimizer.init_args.state={optimizer.state} has no effect: no matrix of "
            "model.network has rows that are a multiple of 64; widen the network, or use "
            "state=bf16 or AdamW"
        )


def rounding(settings: Settings) -> Iterator[str]:
    """Where LowBitAdamW cannot keep or round what it is given."""
    if not isinstance(settings.task.optimizer_config, LowBitAdamW):
        return
    name = type(settings.strategy).__name__
    if name == "ZeRO":
        yield (
            "model.optimizer=LowBitAdamW needs whole matrices, and ZeRO flattens them and keeps "
            "its own masters; set trainer.strategy to ddp or fsdp, or use AdamW"
        )
    elif precision_of(settings) == "bf16-true" and _replicas(settings, name) > 1:
        yield (
            "model.optimizer=LowBitAdamW with trainer.precision=bf16-true and weights that several "
            f"ranks hold ({name}): they would round the same weight differently; set "
            "trainer.strategy=fsdp or trainer.precision=bf16-mixed, or use AdamW"
        )


def _replicas(settings: Settings, name: str) -> int:
    """Ranks that hold the same weights; tensor parallelism leaves vectors whole on each of its."""
    if name == "FSDP":
        return settings.mesh_shape.replicas * settings.mesh_shape.tensor
    if name == "LocalSGD":  # each has weights of its own
        return 1
    return settings.world_size


def in_backward(settings: Settings) -> Iterator[str]:
    """What must not touch a gradient between backward and update when there is nothing between."""
    if settings.task.update == "step":
        return
    clip = settings.trainer.get("gradient_clip_val")
    if clip:
        yield (
            f"{_IN_BACKWARD} with trainer.gradient_clip_val={clip}: the global norm is known only "
            "when all parameters are updated; remove trainer.gradient_clip_val, or write "
            "model.update=step"
        )
    accumulation = derive(settings).accumulation
    if accumulation > 1:
        yield (
            f"{_IN_BACKWARD} with {accumulation} micro-batches a step would update after each of "
            "them; raise batch.per_device until a step is one micro-batch, or write "
            "model.update=step"
        )
    name = type(settings.strategy).__name__
    if name not in ("SingleDevice", "FSDP"):
        yield (
            f"{_IN_BACKWARD} under {name}, which reduces gradients after they would be used; set "
            "trainer.strategy to fsdp, or write model.update=step"
        )
    if settings.strategy.reduction != "fast":
        yield (
            f"{_IN_BACKWARD} with reduction: canonical, which takes the norm of whole gradients "
            "after backward; write model.update=step"
        )
    if isinstance(settings.task.optimizer_config, MuonAdamW):
        yield (
            f"{_IN_BACKWARD} with model.optimizer=MuonAdamW, which orthogonalizes matrices of one "
            "shape together; use AdamW, or write model.update=step"
        )
    if not settings.dense:
        yield (
            f"{_IN_BACKWARD} with targets that data.source or model.loss ignores: gradients are "
            "divided by the number of the others when backward is over; write model.update=step"
        )
    if settings.task.construction.compile in ("network", "graphs"):
        yield (
            f"{_IN_BACKWARD} with model.compile={settings.task.construction.compile} frees nothing "
            "early, since one graph gives all gradients at its end; write model.compile=blocks, or "
            "model.update=step"
        )
