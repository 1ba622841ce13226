"""The files of a run directory as the numbers a report shows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import isfinite
from pathlib import Path
from statistics import median
from typing import NamedTuple

from tqdm import tqdm

from llm_train.errors import LLMTrainError
from llm_train.report.goodput import Goodput
from llm_train.runtime.ledger import LEDGER
from llm_train.trainer.logger.records import Record, merge, read_lines


class Point(NamedTuple):
    """The value of a metric at a step, which need not be finite."""

    step: int
    value: float


@dataclass(frozen=True, kw_only=True)
class RecordedRun:
    """What is known about a run.

    Attributes:
        name: of its directory.
        records: one per step, ascending, as ``merge`` gives them.
        lines: every line of the metrics file, events and superseded records included.
        derived: section -> name -> printable value.
        config: resolved configuration as text; "" when there is none.
        goodput: where wall time went; without rows when no ledger is there.
    """

    name: str
    records: list[Record]
    lines: list[Record]
    derived: dict[str, dict[str, object]]
    config: str
    goodput: Goodput

    @classmethod
    def read(cls, run_dir: Path) -> RecordedRun:
        """Reads a run directory."""
        metrics, derived, config, ledger = (
            run_dir / name for name in ("metrics.jsonl", "derived.json", "config.yaml", LEDGER)
        )
        if not metrics.is_file():
            raise LLMTrainError(
                f"{run_dir} has no metrics.jsonl; give the directory of a run "
                "(trainer.default_root_dir)"
            )
        lines = read_lines(metrics)
        if not (records := merge(lines)):
            raise LLMTrainError(f"{metrics} holds no metrics yet; the first log point writes some")
        try:
            sections = json.loads(derived.read_text("utf-8")) if derived.exists() else {}
            if not all(isinstance(section, dict) for section in sections.values()):
                raise ValueError("its sections are not mappings")
        except (ValueError, AttributeError, RecursionError) as error:
            raise LLMTrainError(
                f"{derived} is not a table of a run: {error}; delete it or run again"
            ) from None
        return cls(
            name=run_dir.absolute().name,
            records=records,
            lines=lines,
            derived=sections,
            config=config.read_text("utf-8", errors="replace") if config.exists() else "",
            goodput=Goodput.of(read_lines(ledger) if ledger.is_file() else [], lines),
        )

    @property
    def tokens_per_step(self) -> float:
        """From the last record that has both; 0 when the run logged no tokens."""
        for record in reversed(self.records):
            if record["step"] > 0 and record.get("progress/tokens", 0) > 0:
                return float(record["progress/tokens"] / record["step"])
        return 0.0

    @property
    def events(self) -> list[Record]:
        """Resumes and whatever else happened, in order."""
        return [line for line in self.lines if "event" in line]

    def points(self, metric: str) -> list[Point]:
        """All values of one metric."""
        return [Point(r["step"], float(r[metric])) for r in self.records if metric in r]

    def not_finite(self, metric: str) -> list[Point]:
        """The values of one metric that are NaN or infinite."""
        return [point for point in self.points(metric) if not isfinite(point.value)]

    def finite(self, metric: str) -> list[Point]:
        """The values of one metric that are neither NaN nor infinite."""
        return [point for point in self.points(metric) if isfinite(point.value)]

    def seconds(self) -> float:
        """Time spent running: between consecutive lines, without the gaps before a resume."""
        total, before = 0.0, None
        for line in self.lines:
            if "time" not in line:
                continue
            now = datetime.fromisoformat(line["time"]).timestamp()
            if line.get("event") == "start":
                total = 0.0
            elif before is not None and line.get("event") != "resume":
                total += max(0.0, now - before)
            before = now
        return total

    def summary(self) -> dict[str, str]:
        """The rows at the top of the report, those that the run has values for."""
        rows = {}
        for label, metric, unit in _LOSSES:
            if points := self.finite(metric):
                rows[f"{label}, last"] = _shown(points[-1], unit)
            if points and metric.startswith("val/"):
                rows[f"{label}, best"] = _shown(min(points, key=lambda p: p.value), unit)
        for name, value in self.derived.get("data", {}).items():
            if "gzip" in name.lower() or "xz" in name.lower():
                text = f"{value:.4f}" if isinstance(value, float) else str(value)
                rows[f"for comparison: {name}"] = text
        rows["steps"] = f"{self.records[-1]['step']:,}"
        for label, metric, reduced, shown in _FIGURES:
            if points := self.finite(metric):
                rows[label] = shown(reduced(point.value for point in points))
        rows["running time"] = str(timedelta(seconds=round(self.seconds())))
        happened = Counter(event["event"] for event in self.events)
        rows["resumes"] = str(happened["resume"])
        for event, label in _EVENTS.items():
            if happened[event]:
                rows[label] = str(happened[event])
        bad = [p.step for metric in ("train/loss", "val/loss") for p in self.not_finite(metric)]
        if bad:
            rows["losses that are not finite"] = f"{len(bad)}, the first at step {min(bad):,}"
        return rows


def _shown(point: Point, unit: str) -> str:
    return f"{point.value:.4f}{unit} at step {point.step:,}"


def short(value: float) -> str:
    """Three digits and a suffix, which is B for a billion as it is for budgets.

    >>> [short(v) for v in (950, 1500, 1_540_000, 300e9)]
    ['950', '1.50k', '1.54M', '300B']
    """
    return tqdm.format_sizeof(value).replace("G", "B")


_EVENTS = {"spike": "spikes", "skipped": "steps left out", "rollback": "rollbacks"}
_LOSSES = (
    ("training loss", "train/loss", " nats per token"),
    ("validation loss", "val/loss", " nats per token"),
    ("bits per byte", "val/bits_per_byte", ""),
)
_FIGURES: tuple[
    tuple[str, str, Callable[[Iterable[float]], float], Callable[[float], str]], ...
] = (
    ("tokens", "progress/tokens", max, lambda n: f"{short(n)} ({n:,.0f})"),
    ("throughput, median", "throughput/tokens_per_s", median, lambda n: f"{short(n)} tokens/s"),
    ("model FLOPs utilisation, median", "throughput/mfu", median, "{:.1%}".format),
    ("peak memory", "memory/peak_gib", max, "{:.2f} GiB".format),
    ("updates left out by the loss scaler", "optimizer/skipped", max, "{:.0f}".format),
)
