"""Rules about the mesh: what divides, what a network can be cut into, what offloading needs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from llm_train.check.table import on_meta
from llm_train.model.network.attention import Attention
from llm_train.model.network.mlp import GatedMLP, PlainMLP
from llm_train.model.optimizer import AdamW, TorchOptimizer
from llm_train.settings import Settings


def mesh(settings: Settings) -> Iterator[str]:
    """Sizes of the mesh against ranks and nodes."""
    if type(settings.strategy).__name__ != "FSDP":
        return
    layout, key = settings.mesh_shape, "trainer.strategy"
    if layout.replicas > 1 and layout.shards == layout.tensor == 1:
        yield (
            f"{key}: replicas={layout.replicas} leaves one rank a copy and nothing to shard; "
            "use ddp, or fewer replicas"
        )
    if settings.devices % layout.tensor:
        yield (
            f"{key}: tensor={layout.tensor} does not divide the {settings.devices} devices of a "
            "node, and its ranks talk in every layer; use a divisor"
        )


def matrices(settings: Settings) -> Iterator[str]:
    """What tensor parallelism cuts must come out in equal parts; builds on meta."""
    if type(settings.strategy).__name__ != "FSDP" or settings.mesh_shape.tensor == 1:
        return
    ranks, network = settings.mesh_shape.tensor, on_meta(settings)
    roles = network.tensor_roles()
    seen: dict[str, int] = {"batch.sequence": settings.batch.sequence}
    for path, module in network.named_modules():
        seen.update(_parts(module, roles.get(path, "")))
    for name, number in seen.items():
        if number % ranks:
            yield (
                f"trainer.strategy: tensor={ranks} does not divide {name}={number}; use a divisor "
                f"of both, or change {name}"
            )
    if settings.task.construction.float8 != "none":
        yield (
            f"model.float8={settings.task.construction.float8} does not work with tensor={ranks}; "
            "set model.float8=none, or tensor=1"
        )


def _parts(module: nn.Module, role: str) -> dict[str, int]:
    """How many pieces a module can be cut into at most, by the key that says so."""
    if isinstance(module, Attention):
        return {"model.network's kv_heads": module.heads // module.group}
    if isinstance(module, GatedMLP):
        slabs = module.down.in_features // module.slab
        return {f"the groups of {module.slab} in model.network's mlp_width": slabs}
    if isinstance(module, PlainMLP):
        return {"model.network's mlp_width": module.down.in_features}
    if role in ("embedding", "head"):
        weight: Any = module.weight
        return {"the rows of the vocabulary (see pad_vocab_to)": weight.shape[0]}
    return {}


def offload(settings: Settings) -> Iterator[str]:
    """Shards in host memory are updated there."""
    if not getattr(settings.strategy, "offload", False):
        return
    key = "trainer.strategy.init_args.offload=true"
    if not settings.on_cuda:
        yield f"{key} has no effect on a CPU, where all memory is the host's; remove it"
    optimizer = settings.task.optimizer_config
    if not isinstance(optimizer, AdamW | TorchOptimizer):
        yield (
            f"{key} updates on the host, where model.optimizer={type(optimizer).__name__} cannot "
            "or is far too slow; use AdamW, or offload=false"
        )
