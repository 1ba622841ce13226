"""The files of a run directory as the numbers a report shows."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from math import isfinite
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from llm_train.errors import LLMTrainError
from llm_train.report.goodput import Goodput
from llm_train.run.directory import RECORDS
from llm_train.runtime import yaml12
from llm_train.runtime.ledger import LEDGER
from llm_train.runtime.structure import flat
from llm_train.trainer.logger.records import Record, merge, read_lines


class Point(NamedTuple):
    """The value of a metric at a step, which need not be finite."""

    step: int
    value: float


@dataclass(frozen=True, kw_only=True)
class RecordedRun:
    """What is known about a run.

    Attributes:
        path: of its directory.
        records: one per step, ascending, as ``merge`` gives them.
        lines: every line of the metrics file, events and superseded records included.
        derived: section -> name -> printable value.
        config: resolved configuration as text; "" when there is none.
        goodput: where wall time went; without rows when no ledger is there.
        environment: code, versions and device of its last start; empty when nobody wrote them.
    """

    path: Path
    records: list[Record]
    lines: list[Record]
    derived: dict[str, dict[str, object]]
    config: str
    goodput: Goodput
    environment: dict[str, str]

    @classmethod
    def read(cls, run_dir: Path) -> "RecordedRun":
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
            path=run_dir,
            records=records,
            lines=lines,
            derived=sections,
            config=config.read_text("utf-8", errors="replace") if config.exists() else "",
            goodput=Goodput.of(read_lines(ledger) if ledger.is_file() else [], lines),
            environment=_environment(run_dir),
        )

    @property
    def name(self) -> str:
        """The name of its directory."""
        return self.path.absolute().name

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Every setting by its dotted key, except where the run writes."""
        try:
            found = flat(yaml12.load(self.config) or {})
        except yaml12.YAMLError as error:
            why = " ".join(str(error).split())
            raise LLMTrainError(
                f"{self.path}/config.yaml cannot be read: {why}; restore it from records/"
            ) from None
        return {k: v for k, v in found.items() if k not in ("", "trainer.default_root_dir")}

    def places(self, steps: Sequence[float]) -> dict[str, list[float]]:
        """Where steps lie on every axis that the run knows: steps, hours, tokens and FLOPs."""
        places = {"steps": [float(step) for step in steps]}
        tokens = [(r["step"], r["progress/tokens"]) for r in self.records if "progress/tokens" in r]
        if self._clock:
            seconds = _between(steps, sorted(self._clock.items()))
            places["hours"] = [value / 3600 for value in seconds]
        if tokens and tokens[-1][1] > 0:
            places["tokens"] = _between(steps, [(0, 0), *tokens])
            flops = self.derived.get("network", {}).get("flops_per_token_causal")
            if isinstance(flops, int | float):
                places["FLOPs"] = [value * flops for value in places["tokens"]]
        return places

    @property
    def events(self) -> list[Record]:
        """Resumes and whatever else happened, in order."""
        return [line for line in self.lines if "event" in line]

    @property
    def samples(self) -> list[tuple[int, list[Any]]]:
        """Steps, the newest first, and the texts that were written then (``Samples``)."""
        found = [(e["step"], e.get("samples")) for e in self.events if e["event"] == "samples"]
        return [(step, texts) for step, texts in reversed(found) if isinstance(texts, list)]

    def points(self, metric: str) -> list[Point]:
        """All values of one metric."""
        return [Point(r["step"], float(r[metric])) for r in self.records if metric in r]

    def not_finite(self, metric: str) -> list[Point]:
        """The values of one metric that are NaN or infinite."""
        return [point for point in self.points(metric) if not isfinite(point.value)]

    def finite(self, metric: str) -> list[Point]:
        """The values of one metric that are neither NaN nor infinite."""
        return [point for point in self.points(metric) if isfinite(point.value)]

    @cached_property
    def _clock(self) -> dict[int, float]:
        """Step -> seconds spent running until then, without the gaps before a resume."""
        clock: dict[int, float] = {}
        total, before = 0.0, None
        for line in self.lines:
            if "time" not in line:
                continue
            now, event = datetime.fromisoformat(line["time"]).timestamp(), line.get("event")
            if event == "start":
                total, clock = 0.0, {}
            elif before is not None and event != "resume":
                total += max(0.0, now - before)
            if event in ("resume", "rollback"):
                clock = {step: at for step, at in clock.items() if step <= line["step"]}
            clock[line["step"]] = total
            before = now
        return clock

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
                rows[f"for comparison: {name}".replace("_", " ")] = text
        rows["steps"] = f"{self.records[-1]['step']:,}"
        for label, metric, reduced, shown in _FIGURES:
            if points := self.finite(metric):
                rows[label] = shown(reduced(point.value for point in points))
        rows["running time"] = str(timedelta(seconds=round(max(self._clock.values(), default=0))))
        happened = Counter(event["event"] for event in self.events)
        rows["resumes"] = str(happened["resume"])
        for event, label in _EVENTS.items():
            if happened[event]:
                rows[label] = str(happened[event])
        bad = [p.step for metric in ("train/loss", "val/loss") for p in self.not_finite(metric)]
        if bad:
            rows["losses that are not finite"] = f"{len(bad)}, the first at step {min(bad):,}"
        return rows


def _environment(run_dir: Path) -> dict[str, str]:
    *_, newest = [None, *sorted((run_dir / RECORDS).glob("*.json"))]
    try:
        return dict(json.loads(newest.read_text("utf-8"))) if newest else {}
    except (OSError, ValueError, TypeError):
        return {}


def _between(steps: Sequence[float], known: Sequence[tuple[int, float]]) -> list[float]:
    """Values at steps, on the lines between those that are known."""
    at, values = np.array(known, float).T
    return [float(value) for value in np.interp(steps, at, values)]


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
