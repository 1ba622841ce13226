"""The files of a run directory as the numbers a report shows."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from llm_train.errors import LLMTrainError
from llm_train.trainer.logger.records import merge, read_lines

_SUFFIXES = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


class Series(NamedTuple):
    """One metric over the run; ``y`` may hold values that are not finite."""

    steps: list[int]
    x: list[float]  # tokens, or steps when the run logged no tokens
    y: list[float]

    def finite(self) -> list[tuple[int, float]]:
        """(step, value) wherever the value is finite."""
        pairs = zip(self.steps, self.y, strict=True)
        return [(step, y) for step, y in pairs if math.isfinite(y)]


@dataclass(frozen=True, kw_only=True)
class Run:
    """What is known about a run.

    Attributes:
        name: of its directory.
        records: one per step, ascending, as ``merge`` gives them.
        lines: every line of the metrics file, events and superseded records included.
        derived: section -> name -> printable value.
        config: resolved configuration as text; "" when there is none.
    """

    name: str
    records: list[dict[str, Any]]
    lines: list[dict[str, Any]]
    derived: dict[str, dict[str, Any]]
    config: str

    @classmethod
    def read(cls, run_dir: Path) -> Run:
        """Reads a run directory."""
        metrics, derived, config = (
            run_dir / name for name in ("metrics.jsonl", "derived.json", "config.yaml")
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
        except ValueError as error:
            raise LLMTrainError(f"{derived} is not JSON: {error}; delete it or run again") from None
        return cls(
            name=run_dir.resolve().name,
            records=records,
            lines=lines,
            derived=sections,
            config=config.read_text("utf-8") if config.exists() else "",
        )

    @property
    def tokens_per_step(self) -> float:
        """From the last record that has both; 0 when the run logged no tokens."""
        for record in reversed(self.records):
            if record["step"] > 0 and record.get("progress/tokens", 0) > 0:
                return float(record["progress/tokens"] / record["step"])
        return 0.0

    @property
    def events(self) -> list[dict[str, Any]]:
        """Resumes and whatever else happened, in order."""
        return [line for line in self.lines if "event" in line]

    def x(self, step: int) -> float:
        """Where a step is on the x-axis: in tokens if they are known, else in steps."""
        return step * (self.tokens_per_step or 1.0)

    def series(self, metric: str) -> Series:
        """All values of one metric."""
        scale = self.tokens_per_step or 1.0
        rows = [
            (r["step"], r["step"] * scale, float(r[metric])) for r in self.records if metric in r
        ]
        return Series([r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows])

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

    def summary(self) -> list[tuple[str, str]]:
        """The rows at the top of the report, those that the run has values for."""
        rows = [
            *self._last_and_best("validation loss", "val/loss", "nats per token"),
            *self._last_and_best("bits per byte", "val/bits_per_byte", ""),
        ]
        rows += [
            (f"for comparison: {name}", f"{value:.4f}" if isinstance(value, float) else str(value))
            for name, value in self.derived.get("data", {}).items()
            if "gzip" in name.lower() or "xz" in name.lower()
        ]
        if train := self.series("train/loss").finite():
            rows.append(("training loss, last", f"{train[-1][1]:.4f} at step {train[-1][0]:,}"))
        rows.append(("steps", f"{self.records[-1]['step']:,}"))
        if tokens := [y for _, y in self.series("progress/tokens").finite()]:
            rows.append(("tokens", f"{short(tokens[-1])} ({tokens[-1]:,.0f})"))
        if rates := [y for _, y in self.series("throughput/tokens_per_s").finite()]:
            rows.append(("throughput, median", f"{short(median(rates))} tokens/s"))
        if rates := [y for _, y in self.series("throughput/mfu").finite()]:
            rows.append(("model FLOPs utilisation, median", f"{median(rates):.1%}"))
        if peaks := [y for _, y in self.series("memory/peak_gib").finite()]:
            rows.append(("peak memory", f"{max(peaks):.2f} GiB"))
        rows.append(("running time", duration(self.seconds())))
        rows.append(("resumes", str(sum(e["event"] == "resume" for e in self.events))))
        bad = [s for m in ("train/loss", "val/loss") for s in self.not_finite(m)]
        if bad:
            rows.append(
                ("losses that are not finite", f"{len(bad)}, the first at step {min(bad):,}")
            )
        return rows

    def not_finite(self, metric: str) -> list[int]:
        """Steps at which a metric was NaN or infinite."""
        series = self.series(metric)
        pairs = zip(series.steps, series.y, strict=True)
        return [step for step, y in pairs if not math.isfinite(y)]

    def _last_and_best(self, label: str, metric: str, unit: str) -> list[tuple[str, str]]:
        if not (points := self.series(metric).finite()):
            return []
        (last_step, last), (step, best) = points[-1], min(points, key=lambda point: point[1])
        unit = f" {unit}" if unit else ""
        if step == last_step:
            return [(f"{label}, last and best", f"{best:.4f}{unit} at step {step:,}")]
        return [
            (f"{label}, last", f"{last:.4f}{unit} at step {last_step:,}"),
            (f"{label}, best", f"{best:.4f}{unit} at step {step:,}"),
        ]


def short(value: float) -> str:
    """Three digits and a suffix.

    >>> [short(v) for v in (0, 950, 1500, 1_540_000, 300e9, 0.25)]
    ['0', '950', '1.5k', '1.54M', '300B', '0.25']
    """
    for scale, suffix in _SUFFIXES:
        if abs(value) >= scale * 0.9995:
            return f"{value / scale:.3g}{suffix}"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> [duration(s) for s in (0.4, 59.6, 183, 7384)]
    ['0 s', '1 min 0 s', '3 min 3 s', '2 h 3 min']
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
