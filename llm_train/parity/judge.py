"""How far a run may be from one process, and how far it was.

Allowed is ``FACTOR`` times what rounding alone does, and at least 1e-5. In fp32 that is what one
process makes of micro-batches of another size: a configuration may amplify rounding, as one does
whose optimizer divides by the gradient's size and makes a whole step of a rounded zero, and then it
says little about strategies.

In narrower precisions the size of micro-batches is no baseline, because it changes the order of one
sum, while strategies round in other places. ``fully_shard`` and DeepSpeed keep activations in bf16
that autocast keeps in fp32, on one rank as on many. The baseline is how far rounding carries one
process from the same process in fp32. Another way of rounding that is no worse is as far from fp32,
so twice as far from the first at most, at one and the same step; ``FACTOR`` leaves room for the
largest of all steps to be larger by chance.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from llm_train.parity.trajectory import Trajectory, distance, largest_difference
from llm_train.parity.variants import Variant

FP32 = 1e-5
FACTOR = 3.0


@dataclass(frozen=True, kw_only=True)
class Distance:
    """From one process: largest relative difference of a step, and relative L2 of weights."""

    loss: float
    norm: float
    weights: float | None


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table.

    Attributes:
        name: the strategy.
        ranks: processes.
        distance: from one process; None for the process itself, and where nothing came out.
        peak_gib: peak memory of rank 0.
        collectives: calls per optimizer step, by kind.
        faults: what is out of tolerance; empty if nothing is.
        same: whether it computes what one process computes; if not, its distance is only shown.
    """

    name: str
    ranks: int
    distance: Distance | None = None
    peak_gib: float = 0.0
    collectives: Mapping[str, float] = field(default_factory=dict)
    faults: Sequence[str] = ()
    same: bool = True

    @property
    def verdict(self) -> str:
        """One word, or what is wrong."""
        within = "yes" if self.same else "not judged"
        return "; ".join(self.faults) or (within if self.distance else "reference")

    def plain(self) -> dict[str, Any]:
        """For JSON, which has no infinity."""
        plain = asdict(self)
        for key, value in (plain["distance"] or {}).items():
            if value is not None and not math.isfinite(value):
                plain["distance"][key] = str(value)
        return plain


def measured(found: Trajectory, expected: Trajectory) -> Distance:
    """How far apart two runs are."""
    own, others = found.weights, expected.weights
    return Distance(
        loss=largest_difference(found.loss, expected.loss),
        norm=largest_difference(found.norm, expected.norm),
        weights=None if own is None or others is None else distance(own, others),
    )


def tolerance(baseline: Distance) -> Distance:
    """What is allowed, given what rounding alone does; a continuous function of it."""
    return Distance(
        loss=max(FP32, FACTOR * baseline.loss),
        norm=max(FP32, FACTOR * baseline.norm),
        weights=max(FP32, FACTOR * (baseline.weights or 0.0)),
    )


def judge(
    variant: Variant, found: Trajectory | None, expected: Trajectory, allowed: Distance
) -> Row:
    """The row of ``variant``: what ranks must not change exactly, the rest within tolerance.

    Args:
        variant: what was run.
        found: what came out; None if it failed.
        expected: what came out of one process; its own row has no distance.
        allowed: the tolerance.
    """
    if found is None:
        return Row(name=variant.name, ranks=variant.ranks, faults=["failed"])
    faults = []
    if found.rate != expected.rate:
        faults.append("learning rate differs")
    if found.tokens != expected.tokens:
        faults.append("tokens differ")
    apart = measured(found, expected)
    for what in ("loss", "norm", "weights") if variant.same else ():
        value, limit = getattr(apart, what), getattr(allowed, what)
        if value is not None and not value <= limit:  # NaN is out of tolerance too
            faults.append(f"{what} above {limit:.1e}")
    return Row(
        name=variant.name,
        ranks=variant.ranks,
        distance=None if found is expected else apart,
        peak_gib=found.peak_gib,
        collectives=found.collectives,
        faults=faults,
        same=variant.same,
    )


_HEADER = ("strategy", "ranks", "loss", "norm", "weights", "GiB", "within", "collectives per step")


def table(rows: Sequence[Row]) -> str:
    """One line a run."""
    cells = [_HEADER, *(_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(_HEADER))]
    return "\n".join(
        "  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def explanation(precision: str, allowed: Distance, *, peak_memory: bool) -> str:
    """What the columns hold and what is allowed in them."""
    memory = "peak of the allocator" if peak_memory else "largest resident set, libraries included"
    baseline = "rounded otherwise" if precision == "32-true" else "in fp32"
    rule = f"{FACTOR:g} times what rounding does to one process, 'single, {baseline}'"
    return (
        "loss, norm: largest relative difference of a step from one process (norm: of gradients)\n"
        "weights: distance of the final weights from those of one process, relative to their norm\n"
        f"GiB: memory of rank 0, {memory}\n"
        "within: learning rate and tokens equal at every step, the rest within tolerance\n"
        f"tolerance of {precision}: {rule}, and at least {FP32:.0e}\n"
        f"  loss {allowed.loss:.1e}, norm {allowed.norm:.1e}, weights {allowed.weights:.1e}"
    )


def _cells(row: Row) -> tuple[str, ...]:
    far = row.distance
    numbers = ("", "", "") if far is None else map(_shown, (far.loss, far.norm, far.weights))
    peak = f"{row.peak_gib:.3f}" if row.peak_gib else ""
    calls = ", ".join(f"{kind} {count:g}" for kind, count in row.collectives.items()) or "none"
    return (row.name, str(row.ranks), *numbers, peak, row.verdict, calls)


def _shown(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1e}"
