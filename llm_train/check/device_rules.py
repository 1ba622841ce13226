"""Rules about devices and nodes: what is asked for, what a launcher started, what is here."""

import os
from collections.abc import Iterator

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment

from llm_train.check.trainer_rules import ACCELERATORS
from llm_train.runtime.devices import KINDS, kind_here
from llm_train.settings import Settings


def devices(settings: Settings) -> Iterator[str]:
    """Accelerator, devices and nodes, as far as they can be judged without any."""
    accelerator = settings.trainer_args.get("accelerator", "auto")
    if accelerator not in ACCELERATORS:
        known = ", ".join(ACCELERATORS)
        yield f"trainer.accelerator={accelerator} is not one of {known}; choose one"
    elif accelerator in ("auto", "gpu") and kind_here() not in ("", *KINDS):
        yield (
            f"trainer.accelerator={accelerator} finds {kind_here()}, on which nothing here has "
            "run; write trainer.accelerator=cpu"
        )
    wanted = settings.trainer_args.get("devices", "auto")
    if isinstance(wanted, list):
        if not wanted or len(set(wanted)) < len(wanted):
            yield f"trainer.devices={wanted} must name each device once, and at least one"
        if settings.accelerator.type == "cpu":
            count = max(len(wanted), 1)
            yield f"trainer.devices={wanted} names CPUs by index; write trainer.devices={count}"
    nodes = settings.trainer_args.get("num_nodes", 1)
    if nodes < 1:
        yield f"trainer.num_nodes={nodes} must be at least 1"
    yield from _launcher(settings)
    yield from settings.device.problems(settings.accelerator)
    if not settings.accelerator.communicates:
        yield from _alone(settings)


def _alone(settings: Settings) -> Iterator[str]:
    """Ranks that could not exchange tensors."""
    traits = settings.strategy.traits(settings.world_size)
    if traits.communicates or settings.world_size > 1:
        yield (
            f"trainer.strategy={traits.name} with {settings.world_size} ranks needs collectives, "
            f"which {settings.accelerator.type} does not have; write trainer.strategy=single and "
            "trainer.devices=1"
        )


def _launcher(settings: Settings) -> Iterator[str]:
    """What torchrun or srun started against what the configuration asks for."""
    for plugin in settings.plugins:
        if isinstance(plugin, ClusterEnvironment):
            # Whoever starts the processes, torchrun or srun, is recognised.
            yield f"trainer.plugins={type(plugin).__name__} has no effect; remove it"
    launch = settings.launch
    if launch.kind == "none":
        return
    name, started = launch.kind, launch.local_ranks
    if not launch.even:
        found = f"{launch.ranks} processes on {launch.nodes} nodes, not as many on each"
        yield f"{name} started {found}; give {name} the same {launch.per_node_option} everywhere"
        return
    if settings.devices != started:
        yield (
            f"trainer.devices={settings.trainer_args['devices']} but {name} started {started} "
            f"processes here; remove it, or give {name} {launch.per_node_option} {settings.devices}"
        )
    nodes = int(settings.trainer_args.get("num_nodes") or 1)
    if nodes not in (1, launch.nodes):
        yield (
            f"trainer.num_nodes={nodes} x {started} processes = {nodes * started}, but {name} "
            f"started {launch.ranks}; remove it, or give {name} {launch.nodes_option} {nodes}"
        )


def present(settings: Settings) -> Iterator[str]:
    """Whether devices and other nodes are here; asked only when a run is about to start."""
    launch, nodes = settings.launch, int(settings.trainer_args.get("num_nodes") or 1)
    if launch.kind == "none" and nodes > 1 and "MASTER_ADDR" not in os.environ:
        yield (
            f"trainer.num_nodes={nodes} but nothing started processes on other nodes; use torchrun "
            "or srun (docs/launching.md)"
        )
    kind = settings.accelerator
    if kind.type == "cpu":
        return
    here = kind.count
    wanted = settings.trainer_args.get("devices", "auto")
    needed = max(wanted) + 1 if isinstance(wanted, list) and wanted else settings.devices
    if here < needed and launch.kind == "srun":
        yield (
            f"srun started {launch.local_ranks} tasks on this node and each sees {here} of its "
            f"{kind.type.upper()} devices; give sbatch --gpus-per-node instead of --gpus-per-task"
        )
    elif here < needed:
        fewer = "fewer trainer.devices, or " if here else ""
        yield (
            f"trainer.accelerator={settings.trainer_args.get('accelerator')} needs {needed} "
            f"{kind.type.upper()} devices and this machine has {here}; set {fewer}"
            "trainer.accelerator=cpu"
        )
