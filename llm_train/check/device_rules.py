"""Rules about devices and nodes: what is asked for, what a launcher started, what is here."""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.pytorch.accelerators import Accelerator

from llm_train.check.trainer_rules import ACCELERATORS
from llm_train.settings import Settings


def devices(settings: Settings) -> Iterator[str]:
    """Accelerator, devices and nodes, as far as they can be judged without any."""
    accelerator = settings.trainer.get("accelerator", "auto")
    if accelerator not in ACCELERATORS:
        kind = type(accelerator).__name__ if isinstance(accelerator, Accelerator) else accelerator
        yield f"trainer.accelerator={kind} is not one of {', '.join(ACCELERATORS)}"
    wanted = settings.trainer.get("devices", "auto")
    if isinstance(wanted, list):
        if not wanted or len(set(wanted)) < len(wanted):
            yield f"trainer.devices={wanted} must name each device once, and at least one"
        if not settings.on_cuda:
            yield (
                f"trainer.devices={wanted} names devices by index, which CPUs do not have; "
                f"write trainer.devices={max(len(wanted), 1)}"
            )
    nodes = settings.trainer.get("num_nodes", 1)
    if nodes < 1:
        yield f"trainer.num_nodes={nodes} must be at least 1"
    yield from _launcher(settings)


def _launcher(settings: Settings) -> Iterator[str]:
    """What torchrun or srun started against what the configuration asks for."""
    for plugin in settings.plugins:
        if isinstance(plugin, ClusterEnvironment):
            yield (
                f"trainer.plugins={type(plugin).__name__} has no effect: torchrun and srun are "
                "recognised; remove it"
            )
    launch = settings.launch
    if launch.kind == "none":
        return
    name, started = launch.kind, launch.local_ranks
    if not launch.even:
        yield (
            f"{name} started {launch.ranks} processes on {launch.nodes} nodes, not as many on "
            f"each; give {name} the same {launch.per_node_option} for every node"
        )
        return
    if settings.devices != started:
        yield (
            f"trainer.devices={settings.trainer['devices']} but {name} started {started} "
            f"processes on this node; remove trainer.devices, or give {name} "
            f"{launch.per_node_option} {settings.devices}"
        )
    nodes = int(settings.trainer.get("num_nodes") or 1)
    if nodes not in (1, launch.nodes):
        yield (
            f"trainer.num_nodes={nodes} x {started} processes a node = {nodes * started}, but "
            f"{name} started {launch.ranks}; remove trainer.num_nodes, or give {name} "
            f"{launch.nodes_option} {nodes}"
        )


def present(settings: Settings) -> Iterator[str]:
    """Whether devices and other nodes are here; asked only when a run is about to start."""
    launch, nodes = settings.launch, int(settings.trainer.get("num_nodes") or 1)
    if launch.kind == "none" and nodes > 1 and "MASTER_ADDR" not in os.environ:
        yield (
            f"trainer.num_nodes={nodes} but nothing started processes on other nodes, and this one "
            "would wait for them; use torchrun or srun (docs/launching.md)"
        )
    if not settings.on_cuda:
        return
    here = torch.cuda.device_count()
    wanted = settings.trainer.get("devices", "auto")
    needed = max(wanted) + 1 if isinstance(wanted, list) and wanted else settings.devices
    if here < needed and launch.kind == "srun":
        yield (
            f"srun started {launch.local_ranks} tasks on this node and each sees {here} CUDA "
            "devices; give sbatch --gpus-per-node instead of --gpus-per-task, so that every task "
            "sees all GPUs of its node"
        )
    elif here < needed:
        yield (
            f"trainer.accelerator={settings.trainer.get('accelerator')} needs {needed} CUDA "
            f"devices and this machine has {here}; set trainer.devices, or trainer.accelerator=cpu"
        )
