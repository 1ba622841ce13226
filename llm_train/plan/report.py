"""A plan as sections for the terminal, and as plain values for JSON."""

from __future__ import annotations

import dataclasses
from typing import Any

from llm_train.plan.devices import Accelerator
from llm_train.plan.roofline import ATTENTION_EFFICIENCY, MEMORY_EFFICIENCY
from llm_train.plan.scale import peak
from llm_train.plan.search import USABLE, Candidate, why_slower
from llm_train.plan.simulate import Measured
from llm_train.plan.speed import PRODUCTS_EFFICIENCY
from llm_train.plan.traffic import LINK_EFFICIENCY

_GIB = 2**30
_SHOWN = 5


def gib(size: float) -> str:
    """Bytes for people; small ones with a smaller unit.

    >>> gib(3 * 2**30), gib(5 * 2**20)
    ('3.00 GiB', '5.0 MiB')
    """
    return f"{size / _GIB:,.2f} GiB" if size >= _GIB / 10 else f"{size / 2**20:,.1f} MiB"


def memory(
    candidate: Candidate,
    plain: Measured,
    simulated: Measured | None,
    device: Accelerator,
    saving: float,
) -> dict[str, str]:
    """Bytes of one rank by part: the formula, and what the simulated step had.

    Args:
        candidate: by formula.
        plain: the step on one device, for its activations.
        simulated: the step as sharded as it will be.
        device: of the rank.
        saving: bytes that compiled blocks do not keep.
    """
    held = candidate.held
    rows = {
        "parameters": (held.parameters, _of(simulated, "parameters")),
        "bf16 copies": (held.copies, _of(simulated, "copies")),
        "gradients": (held.gradients, _of(simulated, "gradients")),
        "optimizer state": (held.optimizer, _of(simulated, "optimizer")),
        "gathered parameters": (held.gathered, None),
        "gradients that wait for their reduction": (held.unreduced, None),
        "reductions on their way": (held.reducing, None),
    }
    shown = {
        name: _both(formula, measured)
        for name, (formula, measured) in rows.items()
        if formula or measured
    }
    each = f" / {candidate.placing.layout.tensor}" if candidate.placing.layout.tensor > 1 else ""
    shown["saved activations"] = f"simulated {gib(plain['saved'])}{each}, operator by operator"
    if saving:
        shown["not kept by compiled blocks"] = f"{gib(saving)}{each}, by torch's partitioner"
    shown["beside the state at most"] = (
        f"{gib(candidate.activations)}, gradients of blocks included"
    )
    highest = candidate.peak
    shown["peak"] = f"formula {gib(candidate.peak)}"
    if simulated is not None:
        moment, size = peak(simulated)
        size -= saving / candidate.placing.layout.tensor
        highest = max(highest, size)
        shown["peak"] += f"; simulated {gib(size)}, at: {moment}"
    usable = USABLE * device.memory
    left = usable - highest
    shown["usable"] = f"{gib(usable)} = {USABLE:.0%} of the {gib(device.memory)} of {device.name}"
    shown["fits"] = f"yes, {gib(left)} left" if left >= 0 else f"no, by {gib(-left)}"
    return shown


def _of(simulated: Measured | None, key: str) -> float | None:
    return None if simulated is None else simulated[key]


def _both(formula: float, measured: float | None) -> str:
    return f"formula {gib(formula)}" + ("" if measured is None else f"; simulated {gib(measured)}")


def traffic_rows(candidate: Candidate, device: Accelerator, per_node: int) -> dict[str, str]:
    """What a rank sends in an optimizer step."""
    rows = {}
    for transfer in candidate.transfers:
        rows[f"{transfer.kind} over {transfer.over} ({transfer.ranks} ranks)"] = (
            f"{gib(transfer.whole)} whole, {gib(transfer.through_rank)} sent by a rank, "
            f"{transfer.calls:,.0f} calls, {transfer.seconds(device, per_node) * 1e3:,.1f} ms"
        )
    return rows


def time_rows(candidate: Candidate, totals: dict[str, Any]) -> dict[str, str]:
    """Seconds of a step by part, and what follows from them."""
    whole = candidate.seconds
    rows = {
        part: f"{seconds * 1e3:,.1f} ms ({seconds / whole:.1%})"
        for part, seconds in candidate.parts.items()
        if seconds > 0
    }
    rows |= {
        "step": f"{whole:,.3f} s",
        "tokens/s": f"{totals['tokens_per_second']:,.0f}, "
        f"{totals['tokens_per_second_per_gpu']:,.0f} a GPU",
        "MFU": f"{totals['mfu']:.1%}",
        "budget": f"{totals['days']:,.2f} days, {totals['gpu_hours']:,.0f} GPU-hours, "
        f"{totals['energy_mwh']:,.2f} MWh of GPUs",
    }
    return rows


def assumptions(device: Accelerator) -> dict[str, str]:
    """What the numbers rest on, the same for every device and run."""
    return {
        "matrix products": f"{PRODUCTS_EFFICIENCY:.0%} of the dense peak",
        "attention": f"{ATTENTION_EFFICIENCY:.0%} of it, causal",
        "memory": f"{MEMORY_EFFICIENCY:.0%} of {device.bytes_per_second / 1e12:.3g} TB/s",
        "links": f"{LINK_EFFICIENCY:.0%} of {device.link / 1e9:,.0f} GB/s within a node and "
        f"{device.network / 1e9:,.1f} GB/s a GPU between nodes, one direction",
        "overlap": "none: communication is added to computation",
        "energy": f"{device.watts:,.0f} W a GPU, hosts and cooling not counted",
    }


def searched(
    fitting: list[Candidate], beyond: list[Candidate], refused: dict[str, str], budget: float
) -> dict[str, dict[str, str]]:
    """The best, those after it, and why the others lost: each strategy and policy at its best."""
    if not fitting:
        return {"no configuration fits": _lost([], beyond, refused, budget)}
    best = fitting[0]
    leaders = _each_once(fitting)
    runners = leaders[1 : 1 + _SHOWN]
    return {
        "fastest that fits": {
            "configuration": str(best),
            "step": f"{best.seconds:,.3f} s",
            "peak": gib(best.peak),
        },
        "runners-up": {str(c): why_slower(c, best) for c in runners},
        "why the others lost": _lost(leaders, beyond, refused, budget),
    }


def _each_once(fitting: list[Candidate]) -> list[Candidate]:
    """The fastest of each strategy and policy."""
    seen: dict[tuple[str, str], Candidate] = {}
    for candidate in fitting:
        seen.setdefault((str(candidate.placing), candidate.recompute), candidate)
    return list(seen.values())


def _lost(
    leaders: list[Candidate], beyond: list[Candidate], refused: dict[str, str], budget: float
) -> dict[str, str]:
    """Of each strategy the fastest policy, of the best strategy every policy; JSON has the rest."""
    rows: dict[str, str] = {}
    seen: set[str] = {str(c.placing) for c in leaders[: 1 + _SHOWN]}
    for candidate in leaders[1 + _SHOWN :]:
        strategy = str(candidate.placing)
        if strategy not in seen or candidate.placing == leaders[0].placing:
            rows[str(candidate)] = why_slower(candidate, leaders[0])
        seen.add(strategy)
    for candidate in sorted(beyond, key=lambda c: c.peak):
        strategy = str(candidate.placing)
        if strategy not in seen or (leaders and candidate.placing == leaders[0].placing):
            rows[str(candidate)] = f"does not fit by {gib(candidate.peak - budget)}"
        seen.add(strategy)
    return rows | {name: f"not possible: {reason}" for name, reason in refused.items()}


def plain(candidate: Candidate) -> dict[str, Any]:
    """A candidate as JSON values."""
    return {
        "strategy": str(candidate.placing),
        "layout": dataclasses.asdict(candidate.placing.layout),
        "recompute": candidate.recompute,
        "micro_batch": candidate.micro_batch,
        "micro_batches": candidate.micro_batches,
        "bytes": dataclasses.asdict(candidate.held)
        | {"activations": candidate.activations, "peak": candidate.peak},
        "seconds": candidate.parts | {"step": candidate.seconds},
        "transfers": [
            dataclasses.asdict(t) | {"sent_by_a_rank": t.through_rank} for t in candidate.transfers
        ],
    }
