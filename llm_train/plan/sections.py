"""A plan as sections for the terminal, and as plain values for JSON."""

from dataclasses import asdict
from typing import Any

from llm_train.plan import speed
from llm_train.plan.cost_model import Candidate
from llm_train.plan.operators import Measured
from llm_train.plan.search import USABLE, Findings
from llm_train.plan.simulate import peak
from llm_train.runtime.devices import Device

Rows = dict[str, str]

_GIB = 2**30
_SHOWN = 5
# Parts of the state by their names in a simulation and in ``StateBytes``.
_PARTS = {
    "parameters": "parameters",
    "copies": "bf16 copies",
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "agreed": "what replicas agreed on",
    "gathered": "gathered parameters",
    "unreduced": "gradients that wait for their reduction",
    "reducing": "reductions on their way",
}


def gib(size: float) -> str:
    """Bytes for people; small ones with a smaller unit.

    >>> gib(3 * 2**30), gib(5 * 2**20)
    ('3.00 GiB', '5.0 MiB')
    """
    return f"{size / _GIB:,.2f} GiB" if size >= _GIB / 10 else f"{size / 2**20:,.1f} MiB"


def memory(
    candidate: Candidate, saved: float, simulated: Measured | None, device: Device, saving: float
) -> Rows:
    """Bytes of one rank by part: the formula, and what the simulated step had.

    Args:
        candidate: by formula.
        saved: activations of the step on one device.
        simulated: the step as sharded as it will be.
        device: of the rank.
        saving: bytes that compiled blocks do not keep.
    """
    rows = {}
    for key, name in _PARTS.items():
        formula, measured = getattr(candidate.held, key), (simulated or {}).get(key)
        if formula or measured:
            rows[name] = f"formula {gib(formula)}"
            rows[name] += "" if measured is None else f"; simulated {gib(measured)}"
    if candidate.unknown:
        rows[_PARTS["optimizer"]] = "unknown, and left out of all sums: this is the least"
    each = f" / {candidate.mesh.tensor}" if candidate.mesh.tensor > 1 else ""
    rows["saved activations"] = f"simulated {gib(saved)}{each}, operator by operator"
    if saving:
        rows["not kept by compiled blocks"] = f"{gib(saving)}{each}, by torch's partitioner"
    activations = gib(candidate.activations)
    rows["besides the state at most"] = f"{activations}, gradients of blocks included"
    highest = candidate.peak
    rows["peak"] = f"formula {gib(highest)}"
    if simulated is not None:
        phase, size = peak(simulated)
        size += candidate.held.agreed - saving / candidate.mesh.tensor
        highest = max(highest, size)
        rows["peak"] += f"; simulated {gib(size)}, at: {phase}"
    usable = USABLE * device.memory
    left = usable - highest
    rows["usable"] = f"{gib(usable)} = {USABLE:.0%} of the {gib(device.memory)} of {device.name}"
    rows["fits"] = f"yes, {gib(left)} left" if left >= 0 else f"no, by {gib(-left)}"
    if candidate.unknown and left >= 0:
        rows["fits"] = f"unknown: {gib(left)} left for the optimizer state"
    return rows


def traffic(candidate: Candidate, device: Device, per_node: int) -> Rows:
    """What a rank sends in an optimizer step."""
    return {
        f"{t.kind} over {t.over} ({t.ranks} ranks)": (
            f"{gib(t.whole)} whole, {gib(t.through_rank)} sent by a rank, {t.calls:,.10g} calls, "
            f"{speed.transfer_seconds(t, device, per_node) * 1e3:,.1f} ms"
        )
        for t in candidate.transfers
    }


def duration(candidate: Candidate, totals: dict[str, float]) -> Rows:
    """Seconds of a step by part, and what follows from them."""
    whole = candidate.seconds
    parts = {
        part: f"{seconds * 1e3:,.1f} ms ({seconds / whole:.1%})"
        for part, seconds in candidate.parts.items()
        if seconds > 0
    }
    return parts | {
        "step": f"{whole:,.3f} s",
        "tokens/s": f"{totals['tokens_per_second']:,.0f}, "
        f"{totals['tokens_per_second_per_gpu']:,.0f} a GPU",
        "MFU": f"{totals['mfu']:.1%}",
        "budget": f"{totals['days']:,.2f} days, {totals['gpu_hours']:,.0f} GPU-hours, "
        f"{totals['energy_mwh']:,.2f} MWh of GPUs",
    }


def assumptions(device: Device) -> Rows:
    """What the numbers rest on, the same for every device and run."""
    return {
        "matrix products": f"{speed.PRODUCTS_EFFICIENCY * speed.IN_A_STEP:.0%} of the dense peak, "
        "less what their reads and writes cost",
        "attention": "by head width and sequence, as cuDNN on an H200",
        "memory": f"{speed.MEMORY_EFFICIENCY:.0%} of {device.bytes_per_second / 1e12:.3g} TB/s, "
        f"{speed.COPY_EFFICIENCY:.0%} by plain operators",
        "links": f"{speed.LINK_EFFICIENCY:.0%} of {device.link / 1e9:,.0f} GB/s within a node and "
        f"{device.network / 1e9:,.1f} GB/s a GPU between nodes, one direction",
        "overlap": "none: communication is added to computation",
        "energy": f"{device.watts:,.0f} W a GPU, hosts and cooling not counted",
    }


def searched(found: Findings, own: Candidate, budget: float) -> dict[str, Rows]:
    """The best, those after it, and why the others lost: each strategy and policy at its best."""
    own_name = (own.strategy, own.recompute)
    alike = [c for c in found.fitting if (c.strategy, c.recompute) == own_name]
    largest = max(alike, key=lambda c: c.micro_batch, default=None)
    fits = f"{largest.micro_batch} samples, {gib(largest.peak)}" if largest else "none"
    sections = {"largest micro-batch that fits": {"; ".join(own_name): fits}}
    leaders: dict[tuple[str, str], Candidate] = {}
    for candidate in found.fitting:
        leaders.setdefault((candidate.strategy, candidate.recompute), candidate)
    best, others = next(iter(found.fitting), None), [*leaders.values()][1:]
    if best is not None:
        sections["fastest that fits"] = {
            "configuration": str(best),
            "step": f"{best.seconds:,.3f} s",
            "peak": gib(best.peak),
        }
    lost: Rows = {}
    seen = {best.strategy} if best else set()
    for candidate in [*others, *sorted(found.beyond, key=lambda c: c.peak)]:
        # The first few, then of each strategy the fastest policy, of the best strategy every one.
        of_best = best is not None and candidate.strategy == best.strategy
        if len(lost) < _SHOWN or of_best or candidate.strategy not in seen:
            lost[str(candidate)] = (
                why_slower(candidate, best)
                if best is not None and candidate.peak <= budget
                else f"does not fit by {gib(candidate.peak - budget)}"
            )
        seen.add(candidate.strategy)
    lost |= {name: f"not possible: {reason}" for name, reason in found.refused.items()}
    return sections | {"why the others lost" if best else "no configuration fits": lost}


def why_slower(candidate: Candidate, best: Candidate) -> str:
    """How much slower than the best, and the part of the step that costs most of it."""
    extra = {part: candidate.parts[part] - best.parts[part] for part in best.parts}
    worst = max(extra, key=lambda part: extra[part])
    percent = candidate.seconds / best.seconds - 1
    if percent < 0.001:
        return f"as fast, with {(candidate.peak - best.peak) / _GIB:+.1f} GiB"
    return f"{percent:.1%} slower: {worst} +{extra[worst] * 1e3:,.1f} ms a step"


def plain(candidate: Candidate) -> dict[str, Any]:
    """A candidate as JSON values."""
    plain = asdict(candidate)
    size = {"activations": plain.pop("activations"), "peak": candidate.peak}
    return plain | {
        "bytes": plain.pop("held") | size,
        "seconds": plain.pop("parts") | {"step": candidate.seconds},
        "transfers": [asdict(t) | {"sent_by_a_rank": t.through_rank} for t in candidate.transfers],
    }
