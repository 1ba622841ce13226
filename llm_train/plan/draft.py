"""Puts a plan together: the configured run on given devices, and the search for a faster one."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from llm_train import check as checks
from llm_train.errors import ConfigError
from llm_train.plan import sections
from llm_train.plan.cost_model import Candidate, CostModel
from llm_train.plan.operators import Measured
from llm_train.plan.search import USABLE, search
from llm_train.plan.simulate import at_depth
from llm_train.runtime.devices import Device, device_called
from llm_train.runtime.terminal import say, say_sections
from llm_train.settings import Settings


def plan(settings: Settings, gpu: str, json_path: str, *, devices: int, nodes: int) -> None:
    """Prints memory, time and traffic of the configured run, and the fastest one that fits.

    Args:
        settings: what was configured; devices, nodes and accelerator are replaced.
        gpu: short name of the device.
        json_path: where the same is written as JSON; nowhere if empty.
        devices: GPUs of a node; 0 is as configured.
        nodes: number of nodes; 0 is as configured.

    Raises:
        ConfigError: the configuration has problems, or the device is not known.
    """
    started = time.perf_counter()
    device = device_called(gpu)
    settings = on_devices(settings, devices=devices, nodes=nodes)
    problems = checks.problems(settings, running=False)
    if problems:
        raise ConfigError("\n".join(problems))
    model = CostModel(settings, device)
    own, shown, values = configured(model)
    budget = USABLE * device.memory
    found = search(model, budget)
    seconds = time.perf_counter() - started
    shown |= sections.searched(found, own, budget) | {"assumptions": sections.assumptions(device)}
    say_sections(shown)
    say(f"\nplanned in {seconds:.1f} s; nothing was allocated")
    values |= {
        "fastest": [sections.plain(c) | model.totals(c) for c in found.fitting[:20]],
        "too_large": [sections.plain(c) for c in found.beyond],
        "refused": found.refused,
        "planned_in_seconds": seconds,
    }
    if json_path:
        Path(json_path).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def on_devices(settings: Settings, *, devices: int, nodes: int) -> Settings:
    """The settings on GPUs that need not be here; 0 is as configured."""
    given = {"devices": devices, "num_nodes": nodes}
    changed = {key: number for key, number in given.items() if number}
    return replace(
        settings, trainer_args={**settings.trainer_args, "accelerator": "cuda", **changed}
    )


def configured(model: CostModel) -> tuple[Candidate, dict[str, sections.Rows], dict[str, Any]]:
    """The configured run; what to show of it by title, and the same as JSON values."""
    settings, device = model.settings, model.device
    policy, micro_batch = settings.task.construction.recompute, settings.batch.per_device
    own = model.candidate(settings.strategy, policy, micro_batch)
    activations = model.simulated(policy, micro_batch)
    saving = model.saved_by_compiler(policy, micro_batch)
    simulated, totals = _rehearsed(model, own), model.totals(own)
    shown = {
        "plan": _head(settings, own, device),
        "memory of one rank": sections.memory(own, activations["saved"], simulated, device, saving),
        "traffic of one step": sections.traffic(own, device, settings.devices),
        "time": sections.duration(own, totals),
    }
    values: dict[str, Any] = {
        "device": vars(device),
        "configured": sections.plain(own) | totals,
        "simulated": simulated,
        "activations": activations,
        "not_kept_by_compiled_blocks": saving,
    }
    return own, shown, values


def _rehearsed(model: CostModel, own: Candidate) -> Measured | None:
    """The configured step, simulated as sharded as it will be; None where that is impossible.

    It is where an optimizer cannot update tensors without values.
    """
    settings = model.settings
    if not settings.strategy.rehearsable():
        return None
    case = replace(
        model.case(settings.task.construction.recompute),
        optimizer=settings.task.optimizer_config,
        micro_batch=own.micro_batch,
        micro_batches=own.micro_batches,
        strategy=settings.strategy,
        mesh=own.mesh,
        clip=bool(settings.trainer_args.get("gradient_clip_val")),
    )
    try:
        return at_depth(case)
    except Exception:  # any that a step without values can raise
        return None


def _head(settings: Settings, own: Candidate, device: Device) -> dict[str, str]:
    nodes = settings.world_size // settings.devices
    return {
        "devices": f"{nodes} nodes x {settings.devices} x {device.name}",
        "configured": str(own),
        "precision": f"{settings.precision}, most products in {settings.product_dtype}",
        "micro-batches a step": str(own.micro_batches),
        "compile": settings.task.construction.compile,
        "optimizer": type(settings.task.optimizer_config).__name__,
    }
