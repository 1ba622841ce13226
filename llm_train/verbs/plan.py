"""Says what a run will need and take on given GPUs, and which is fastest; needs no device."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from llm_train import check as checks
from llm_train.errors import ConfigError
from llm_train.plan import report
from llm_train.plan.devices import Accelerator, accelerator
from llm_train.plan.formula import weights_of
from llm_train.plan.placing import Placing, placing_of
from llm_train.plan.scale import at_depth
from llm_train.plan.search import USABLE, Candidate, Ground, search
from llm_train.plan.simulate import Case, Measured
from llm_train.plan.speed import summary
from llm_train.runtime.terminal import say, section
from llm_train.settings import Settings
from llm_train.verbs.base import Load, Verb


class Plan(Verb):
    """Plans without allocating anything."""

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """The devices to plan for."""
        parser.add_argument("--devices", type=int, default=0, help="GPUs of a node")
        parser.add_argument("--nodes", type=int, default=0, help="nodes")
        parser.add_argument("--gpu", default="h200", help="short name of the device")
        parser.add_argument("--json", default="", metavar="FILE", help="write the same as JSON")

    def run(self, flags: argparse.Namespace, load: Load) -> int:
        """Prints memory, time and traffic."""
        return plan(
            load(flags.settings),
            devices=flags.devices,
            nodes=flags.nodes,
            gpu=flags.gpu,
            json_path=flags.json,
        )


def plan(settings: Settings, *, devices: int, nodes: int, gpu: str, json_path: str = "") -> int:
    """Prints memory, time and traffic of the configured run, and the fastest one that fits.

    Args:
        settings: what was configured; devices, nodes and accelerator are replaced.
        devices: GPUs of a node; 0 is as configured.
        nodes: number of nodes; 0 is as configured.
        gpu: short name of the device.
        json_path: where the same is written as JSON; nowhere if empty.

    Raises:
        ConfigError: the configuration has problems, or the device is not known.
    """
    started = time.perf_counter()
    device = accelerator(gpu)
    settings = on_devices(settings, devices=devices, nodes=nodes)
    problems = checks.problems(settings, running=False)
    if problems:
        raise ConfigError("\n".join(problems))
    result = draft(settings, device)
    seconds = time.perf_counter() - started
    for title, rows in result.sections.items():
        if rows:
            say(section(title, rows))
    say(f"\nplanned in {seconds:.1f} s; nothing was allocated")
    if json_path:
        values = result.values | {"planned_in_seconds": seconds}
        Path(json_path).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    return 0


def on_devices(settings: Settings, *, devices: int, nodes: int) -> Settings:
    """The settings on GPUs that need not be here."""
    changed: dict[str, Any] = {**settings.trainer, "accelerator": "cuda"}
    if devices:
        changed["devices"] = devices
    if nodes:
        changed["num_nodes"] = nodes
    return replace(settings, trainer=changed)


class Draft:
    """A finished plan.

    Args:
        sections: for the terminal, by title.
        values: the same as JSON values.
    """

    def __init__(self, sections: dict[str, dict[str, Any]], values: dict[str, Any]) -> None:
        self.sections, self.values = sections, values


def draft(settings: Settings, device: Accelerator, *, searching: bool = True) -> Draft:
    """Plans the configured run, and looks for a faster one."""
    precision, placing = settings.precision, placing_of(settings)
    ground = Ground(settings, weights_of(settings.task.network_config), device, precision)
    policy, micro_batch = settings.task.construction.recompute, settings.batch.per_device
    own = ground.candidate(placing, policy, micro_batch)
    activations = ground.activations(policy, micro_batch)
    saving = ground.saved_by_compiler(policy, micro_batch)
    simulated = confirmed(settings, placing, own)
    totals = _totals(settings, own, device, precision)
    sections: dict[str, dict[str, Any]] = {
        "plan": _head(settings, own, device, precision),
        "memory of one rank": report.memory(own, activations, simulated, device, saving),
        "traffic of one step": report.traffic_rows(own, device, settings.devices),
        "time": report.time_rows(own, totals),
    }
    values: dict[str, Any] = {
        "device": vars(device),
        "configured": report.plain(own) | totals,
        "simulated": simulated,
        "activations": activations,
        "not_kept_by_compiled_blocks": saving,
    }
    if searching:
        budget = USABLE * device.memory
        fitting, beyond, refused = search(settings, ground, budget)
        sections["largest micro-batch that fits"] = _largest(fitting, own)
        sections |= report.searched(fitting, beyond, refused, budget)
        values["fastest"] = [
            report.plain(c) | _totals(settings, c, device, precision) for c in fitting[:20]
        ]
        values["too_large"] = [report.plain(c) for c in beyond]
        values["refused"] = refused
    sections["assumptions"] = report.assumptions(device)
    return Draft(sections, values)


def confirmed(settings: Settings, placing: Placing, own: Candidate) -> Measured | None:
    """The configured step, simulated as sharded as it will be; None under DeepSpeed."""
    if placing.kind.startswith("zero") or placing.offload:
        return None
    task = settings.task
    return at_depth(
        Case(
            network=task.network_config,
            loss=task.loss,
            optimizer=task.optimizer_config,
            recompute=task.construction.recompute,
            precision=settings.precision,
            sequence=settings.batch.sequence,
            micro_batch=own.micro_batch,
            micro_batches=own.micro_batches,
            layout=placing.layout,
            sharded=placing.kind == "fsdp",
            reshard=placing.reshard,
            clip=bool(settings.trainer.get("gradient_clip_val")),
        )
    )


def _head(
    settings: Settings, own: Candidate, device: Accelerator, precision: str
) -> dict[str, Any]:
    nodes = settings.world_size // settings.devices
    return {
        "devices": f"{nodes} nodes x {settings.devices} x {device.name}",
        "configured": str(own),
        "precision": precision,
        "micro-batches a step": own.micro_batches,
        "compile": settings.task.construction.compile,
        "optimizer": type(settings.task.optimizer_config).__name__,
    }


def _totals(
    settings: Settings, candidate: Candidate, device: Accelerator, precision: str
) -> dict[str, Any]:
    tokens = settings.batch.tokens
    return summary(
        candidate.parts,
        device,
        precision,
        tokens_per_step=tokens,
        steps=settings.budget.steps(tokens),
        ranks=settings.world_size,
        flops_per_token=settings.task.counts.flops_per_token(settings.batch.sequence, causal=True),
    )


def _largest(fitting: list[Candidate], own: Candidate) -> dict[str, Any]:
    alike = [c for c in fitting if c.placing == own.placing and c.recompute == own.recompute]
    if not alike:
        return {str(own.placing): "none with this recompute policy"}
    largest = max(alike, key=lambda c: c.micro_batch)
    return {
        f"{own.placing}; {own.recompute}": f"{largest.micro_batch} samples, "
        f"{report.gib(largest.peak)}"
    }
