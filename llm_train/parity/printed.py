"""The comparison as text: aligned columns, and what they mean above them."""

from __future__ import annotations

from collections.abc import Sequence

from llm_train.parity.judge import FACTOR, FP32, Distance, Row

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
