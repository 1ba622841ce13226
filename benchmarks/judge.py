"""Compares recorded rows with the goals for one H200.

A ratio is a win only if the difference is more than twice the larger of both spreads. A goal
without a row is *not measured*, never missed.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.shapes import GPU

Row = dict[str, Any]
GIB_PER_GB = 1e9 / 2**30
WHOLE_STUDY = "(study)"
"""Case of a row that says why a study did not run to its end; a later result replaces it."""

# Name of the peer in rows, must and aim, as the ratio of our tokens/s to theirs.
PEERS = (("nanoGPT", 1.15, 1.35), ("Hugging Face", 1.4, 1.8), ("stock Lightning", 1.10, 1.2))


def read_rows(path: Path) -> list[Row]:
    """Returns the complete lines of a file of rows that may not be there yet."""
    lines = path.read_text("utf-8").split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines if line]


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A line in the table of goals.

    Attributes:
        name: what is measured.
        value: the measured value; None if it was not measured.
        must: the value that has to be reached.
        aim: the value that is hoped for; None if there is none.
        unit: unit of value, must and aim.
        higher: whether more is better.
        note: why there is no value, or a caveat about it.
    """

    name: str
    value: float | None
    must: float
    aim: float | None
    unit: str
    higher: bool = True
    note: str = ""

    @property
    def verdict(self) -> str:
        """The verdict: ``aim``, ``must``, ``missed`` or ``not measured``."""
        if self.value is None:
            return "not measured"
        sign = 1 if self.higher else -1
        if self.aim is not None and sign * self.value >= sign * self.aim:
            return "aim"
        return "must" if sign * self.value >= sign * self.must else "missed"


def compare(ours: Row, other: Row) -> tuple[float, str]:
    """Returns our tokens/s over the other's, and ``faster``, ``slower`` or ``equal`` (noise)."""
    noise = 2 * max(ours["spread"], other["spread"])
    ratio = other["milliseconds"] / ours["milliseconds"]
    if abs(ours["milliseconds"] - other["milliseconds"]) <= noise:
        return ratio, "equal"
    return ratio, "faster" if ratio > 1 else "slower"


class Rows:
    """Rows of one or more runs; for each case, the latest row that succeeded counts.

    Args:
        rows: rows in the order in which they were written.
    """

    def __init__(self, rows: Iterable[Row]) -> None:
        self.all = list(rows)

    def of(self, study: str) -> list[Row]:
        """Returns a study's results, one row per case, in the order of first appearance."""
        found: dict[Any, Row] = {}
        for row in self.all:
            if row["study"] != study or row.get("trial"):
                continue
            key = (row["case"], row.get("vocab"), row.get("width"), row.get("tokens"))
            key = (*key, row.get("repeat"))
            if row["case"] != WHOLE_STUDY:
                found = {k: r for k, r in found.items() if r["case"] != WHOLE_STUDY}
            failed = "error" in row or "skipped" in row
            if not failed or key not in found or "error" in found[key] or "skipped" in found[key]:
                found[key] = row
        return list(found.values())

    def get(self, study: str, case: str) -> Row:
        """Returns one result, or else what is known of the whole study, or else an empty row."""
        rows = {row["case"]: row for row in self.of(study)}
        return rows.get(case) or rows.get(WHOLE_STUDY, {})


def _reason(row: Row) -> str:
    return str(row.get("error") or row.get("skipped") or "")


def _ratio(rows: Rows, study: str, other: str) -> tuple[float | None, str]:
    ours, theirs = rows.get(study, "ours"), rows.get(study, other)
    if "milliseconds" not in ours or "milliseconds" not in theirs:
        return None, _reason(theirs) or _reason(ours)
    ratio, verdict = compare(ours, theirs)
    return ratio, verdict


def _float8(rows: Rows) -> tuple[float | None, str]:
    shape = "llama-8b-4096"
    found = {r: rows.get("float8", f"{shape} {r}") for r in ("tensorwise", "rowwise")}
    rates = {r: row["tokens_per_s"] for r, row in found.items() if "tokens_per_s" in row}
    own = [rows.get("float8", f"{shape} {case}") for case in ("bf16", "bf16 again")]
    base = [row["tokens_per_s"] for row in own if "tokens_per_s" in row]
    if not rates or not base:
        return None, next((text for row in (*found.values(), *own) if (text := _reason(row))), "")
    best = max(rates, key=lambda recipe: rates[recipe])
    return 100 * (rates[best] / statistics.mean(base) - 1), best


def goals(rows: Rows) -> list[Goal]:
    """Returns every line of the table of goals."""
    lines = []
    for name, preset in GPU.items():
        row = rows.get("throughput", name)
        note = _reason(row)
        if name == "llama-8b-4096" and row.get("reserved_gib"):
            note = f"{row['reserved_gib'] / GIB_PER_GB:.0f} GB reserved, 140 allowed"
        value = row.get("tokens_per_s")
        goal = {"must": preset.must, "aim": preset.aim, "unit": "tokens/s", "note": note}
        lines.append(Goal(name=name, value=value, **goal))
    for peer, must, aim in PEERS:
        value, note = _ratio(rows, "peers", peer)
        # We claim no win without a difference beyond the noise, whatever the medians say.
        value = 1.0 if note == "equal" else value
        lines.append(
            Goal(name=f"124M against {peer}", value=value, must=must, aim=aim, unit="x", note=note)
        )
    value, note = _ratio(rows, "peers", "bare loop")
    lines.append(
        Goal(name="124M against bare loop", value=value, must=0.99, aim=None, unit="x", note=note)
    )
    value, note = _float8(rows)
    lines.append(
        Goal(name="8B, FP8 against bf16", value=value, must=18, aim=25, unit="%", note=note)
    )
    return lines + _lower_is_better(rows)


def _lower_is_better(rows: Rows) -> list[Goal]:
    memory = rows.get("memory", "as shipped")
    peak = memory["peak_gib"] / GIB_PER_GB if memory.get("peak_gib") else None
    largest = rows.get("largest", "largest")
    billions = largest["parameters"] / 1e9 if "peak_gib" in largest else None
    text = rows.get("shakespeare", "to 1.4697")
    cold = [row for row in rows.of("startup") if row.get("state") == "cold"]
    seconds = [row["seconds"] for row in cold if "seconds" in row]
    first = statistics.median(seconds) if seconds else None
    why = next((_reason(row) for row in cold), _reason(rows.get("startup", WHOLE_STUDY)))
    return [
        Goal(
            name="124M at 64 x 1024, peak memory",
            value=peak,
            must=20,
            aim=18,
            unit="GB",
            higher=False,
            note=_reason(memory),
        ),
        Goal(
            name="largest model, sequence 2048",
            value=billions,
            must=13,
            aim=20,
            unit="B parameters",
            note=_reason(largest),
        ),
        Goal(
            name="Shakespeare-char to 1.4697",
            value=text.get("seconds"),
            must=45,
            aim=20,
            unit="s",
            higher=False,
            note=_reason(text),
        ),
        Goal(
            name="command to step 10, 24 layers, cold cache",
            value=first,
            must=60,
            aim=40,
            unit="s",
            higher=False,
            note=why,
        ),
    ]
