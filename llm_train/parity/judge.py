"""How far a run may be from one process, and how far it was.

fp32: 1e-5 of loss and gradient norm at every step. Anything narrower than fp32 rounds by far more
than that, and differently wherever sums are taken in another order. There the yardstick is one
process that differs in nothing but that order: it runs the same samples in micro-batches of another
size, and a strategy may be ``FACTOR`` times as far away as that, for it changes the order of more
sums. The same yardstick serves fp32 where one process alone exceeds 1e-5, since a configuration
that amplifies rounding so much says nothing about strategies, and the weights in every precision:
an optimizer that divides by the gradient's size makes a whole step of a rounded zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from llm_train.parity.outcome import Outcome, largest_difference
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
    """

    name: str
    ranks: int
    distance: Distance | None = None
    peak_gib: float = 0.0
    collectives: Mapping[str, float] = field(default_factory=dict)
    faults: Sequence[str] = ()

    @property
    def verdict(self) -> str:
        """One word, or what is wrong."""
        return "; ".join(self.faults) or ("yes" if self.distance else "reference")

    def plain(self) -> dict[str, Any]:
        """For JSON, which has no infinity."""
        plain = asdict(self)
        for key, value in (plain["distance"] or {}).items():
            if value is not None and not math.isfinite(value):
                plain["distance"][key] = str(value)
        return plain


def measured(found: Outcome, expected: Outcome, weights: float | None) -> Distance:
    """Distance of two runs whose weights are ``weights`` apart."""
    return Distance(
        loss=largest_difference(found.loss, expected.loss),
        norm=largest_difference(found.norm, expected.norm),
        weights=weights,
    )


def tolerance(precision: str, rounding: Distance) -> Distance:
    """What is allowed, given what rounding alone does."""
    strict = precision == "32-true"
    return Distance(
        loss=_allowed(rounding.loss, strict=strict),
        norm=_allowed(rounding.norm, strict=strict),
        weights=_allowed(rounding.weights or 0.0, strict=False),
    )


def _allowed(spread: float, *, strict: bool) -> float:
    return FP32 if strict and spread <= FP32 else max(FP32, FACTOR * spread)


def judge(
    variant: Variant, found: Outcome, expected: Outcome, distance: Distance, allowed: Distance
) -> Row:
    """The row of ``variant``: what ranks must not change exactly, the rest within tolerance."""
    faults = []
    if found.rate != expected.rate:
        faults.append("learning rate differs")
    if found.tokens != expected.tokens:
        faults.append("tokens differ")
    for what in ("loss", "norm", "weights"):
        value, limit = getattr(distance, what), getattr(allowed, what)
        if value is not None and not value <= limit:
            faults.append(f"{what} above {limit:.1e}")
    return Row(
        name=variant.name,
        ranks=variant.ranks,
        distance=distance,
        peak_gib=found.peak_gib,
        collectives=found.collectives,
        faults=faults,
    )
