"""The curves of runs, as Vega-Lite specifications that both page and picture draw.

Text and rules have the colour ``currentColor``, which is the page's own: the same specification is
dark on light and light on dark. A long curve is drawn as means of consecutive records over a faint
band from the smallest to the largest of them, so that no peak is lost and the file stays small.
Each point holds its place on every axis, so that the page can change from one to another.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import Any

import altair as alt
import vl_convert

from llm_train.report.run import Point, RecordedRun

_GREY, _RED = "#888888", "#c0392b"
_POINTS = 200  # a curve of twice as many records or more is drawn as means
_DOTS = 30  # a curve of no more points than these shows them
_SHORT = "replace(format(datum.value, '.3~s'), 'G', 'B')"  # d3 writes 300G for 300 billion tokens
# Axis -> how its ticks are written, and its values at the pointer.
_AXES = {
    "tokens": (_SHORT, ",.0f"),
    "steps": ("format(datum.value, ',')", ","),
    "hours": ("format(datum.value, '~g')", ".3~f"),
    "FLOPs": ("format(datum.value, '.2~e')", ".3~e"),
}

STYLE: dict[str, object] = json.loads(Path(__file__).with_name("style.json").read_text("utf-8"))


@dataclass(frozen=True, kw_only=True)
class Panel:
    """What is drawn in one frame.

    Attributes:
        title: above it.
        curves: pattern of whole metric names -> what the legend calls one, the pattern's group in
            the place of braces.
        format: of the vertical axis, in d3's language.
        from_zero: whether that axis begins at zero.
        log: whether it is logarithmic where the values span more than a factor of 50.
    """

    title: str
    curves: Mapping[str, str]
    format: str = "~g"
    from_zero: bool = True
    log: bool = False

    def metrics(self, runs: Sequence[RecordedRun]) -> dict[str, str]:
        """Its metrics that a run has, and what the legend calls them."""
        names = dict.fromkeys(name for run in runs for record in run.records for name in record)
        return {
            name: label.format(*(group or "" for group in match.groups())).strip()
            for pattern, label in self.curves.items()
            for name in names
            if (match := re.fullmatch(pattern, name))
        }


_SET = r"val/(?:(.+)/)?"  # of several held-out sets, each but the first has a name
PANELS = (
    Panel(
        title="Loss, nats per token",
        curves={"train/loss": "training", f"{_SET}loss": "validation {}"},
        from_zero=False,
    ),
    Panel(title="Held out, bits per byte", curves={f"{_SET}bits_per_byte": "{}"}, from_zero=False),
    Panel(title="Benchmarks", curves={"eval/(.+)": "{}"}),
    Panel(title="Gradient norm, before clipping", curves={"grad/norm": ""}, log=True),
    Panel(title="Gradient norm by layer", curves={r"layers/(.+)/grad\w*": "{}"}, log=True),
    Panel(
        title="Learning rate", curves={"optimizer/lr": "group 0", r"optimizer/lr_(\d+)": "group {}"}
    ),
    Panel(title="Tokens per second", curves={"throughput/tokens_per_s": ""}, format="~s"),
    Panel(title="Model FLOPs utilisation", curves={"throughput/mfu": ""}, format="~%"),
    Panel(title="Peak memory, GiB", curves={"memory/peak_gib": ""}),
    Panel(title="Gradient noise scale, tokens", curves={"noise/scale_tokens": ""}, log=True),
)


def charts(
    runs: Mapping[str, RecordedRun], legend: alt.Legend | None = None
) -> list[alt.LayerChart]:
    """One chart for each panel that a run has values for.

    Args:
        runs: by what the legend calls them.
        legend: of the runs, in the first chart; None where they are named elsewhere.
    """
    found = [(panel, metrics) for panel in PANELS if (metrics := panel.metrics([*runs.values()]))]
    return [
        _chart(runs, panel, metrics, None if number else legend)
        for number, (panel, metrics) in enumerate(found)
    ]


def axes(runs: Mapping[str, RecordedRun]) -> dict[str, alt.X]:
    """The horizontal axes that all runs have a place on; the first is the usual one."""
    shared = [set(run.places([1])) for run in runs.values()]
    return {name: _x(name) for name in _AXES if all(name in each for each in shared)}


def png(runs: Mapping[str, RecordedRun]) -> bytes:
    """The charts as one picture: the first above the others, which stand in three columns."""
    nothing = alt.LayerChart(layer=[alt.Chart({"values": [{}]}).mark_text(text="nothing to draw")])
    first, *others = charts(runs, alt.Legend(columns=1, labelLimit=1000)) or [nothing]
    times = time_chart(runs)
    small = [each.properties(width=310, height=170) for each in (*others, times) if each]
    whole = alt.vconcat(
        first.properties(width=1080, height=300),
        alt.concat(*small, columns=3).resolve_scale(color="independent", strokeDash="independent"),
        title=alt.TitleParams(title_of(runs), fontSize=18, offset=12),
        background="white",
    ).resolve_scale(color="independent", strokeDash="independent")
    return vl_convert.vegalite_to_png(whole.to_dict(), config=STYLE, scale=1.5)


def title_of(runs: Mapping[str, RecordedRun]) -> str:
    """The names of the runs' folders."""
    return " | ".join(run.name for run in runs.values())


def time_chart(runs: Mapping[str, RecordedRun]) -> alt.Chart | None:
    """Shares of the wall time by name, a bar for each run; None without a ledger."""
    rows = [
        {"run": label, "name": run.name, "for": name.partition("/")[0].replace("_", " "), "s": s}
        for label, run in runs.items()
        for name, s in run.goodput.seconds.items()
    ]
    if not rows:
        return None
    bars = alt.Chart({"values": rows}, title="Wall time").mark_bar()
    chart: alt.Chart = bars.encode(
        x=alt.X("sum(s):Q", stack="normalize", title=None, axis=alt.Axis(format="%")),
        y=alt.Y("name:N", sort=None, title=None, axis=alt.Axis(labelLimit=90)),
        color=alt.Color("for:N", sort="-x", legend=alt.Legend(columns=4, symbolType="square")),
        tooltip=["name:N", "for:N", alt.Tooltip("sum(s):Q", title="seconds", format=",.1f")],
    )
    return chart


def _chart(
    runs: Mapping[str, RecordedRun],
    panel: Panel,
    metrics: Mapping[str, str],
    runs_legend: alt.Legend | None,
) -> alt.LayerChart:
    rows, crosses, dashes = [], [], []
    for label, run in runs.items():
        for metric, curve in metrics.items():
            of = {"run": label, "curve": curve}
            rows += [{**of, **row} for row in _rows(run, run.points(metric))]
            crosses += [{**of, **_place(run, p.step)} for p in run.not_finite(metric)]
        resumes = [event["step"] for event in run.events if event["event"] == "resume"]
        dashes += [{"run": label, **_place(run, step)} for step in resumes]
    places = axes(runs)
    x, y = next(iter(places.values())), _y(panel, [row["value"] for row in rows])
    legend = alt.Legend(columns=3) if len(metrics) > 1 else None
    curves = alt.Chart({"values": rows}).encode(x=x, y=y, detail="curve:N")
    if len(runs) > 1:
        scale = alt.Scale(domain=[*runs])
        curves = curves.encode(color=alt.Color("run:N", scale=scale, legend=runs_legend))
        lines = curves.encode(strokeDash=alt.StrokeDash("curve:N", sort=None, legend=legend))
    else:
        curves = lines = curves.encode(color=alt.Color("curve:N", sort=None, legend=legend))
    band = curves.mark_area(opacity=0.25).encode(y=alt.Y("low:Q", title=None), y2="high:Q")
    layers, explained = [band, lines.mark_line(strokeWidth=1.8)], []
    if dashes:
        explained.append("dashed: resumed")
        rule = alt.Chart({"values": dashes}).mark_rule(strokeDash=[4, 4], color=_GREY)
        layers.append(rule.encode(x=x))
    if crosses:
        explained.append("cross: not finite")
        text = alt.Chart({"values": crosses}).mark_text(
            text="\u00d7", dy=-8, fontSize=16, color=_RED
        )
        layers.append(text.encode(x=x, y=alt.value("height")))
    title = alt.TitleParams(panel.title, subtitle="; ".join(explained) or alt.Undefined)
    told = ["run:N"] * (len(runs) > 1) + ["curve:N"] * (len(metrics) > 1)
    tooltip = [alt.Tooltip(f"{name}:Q", format=_AXES[name][1]) for name in places]
    tooltip = [*map(alt.Tooltip, told), *tooltip, alt.Tooltip("value:Q", format=".5~g")]
    layers.append(_dots(curves, panel, tooltip))
    return alt.LayerChart(layer=layers, title=title)


def _place(run: RecordedRun, step: float) -> dict[str, float]:
    return {name: values[0] for name, values in run.places([step]).items()}


def _rows(run: RecordedRun, points: Sequence[Point]) -> Iterator[dict[str, Any]]:
    """Means of consecutive values, with the smallest and the largest of those that are finite."""
    size = max(1, len(points) // _POINTS)
    parts = [points[first : first + size] for first in range(0, len(points), size)]
    places = run.places([fmean(point.step for point in part) for part in parts])
    for index, part in enumerate(parts):
        finite = [point.value for point in part if isfinite(point.value)]
        yield {
            **{name: values[index] for name, values in places.items()},
            "value": fmean(finite) if finite else None,
            "low": min(finite, default=None),
            "high": max(finite, default=None),
            "dot": int(len(points) <= _DOTS),
        }


def _x(name: str) -> alt.X:
    axis = alt.Axis(labelExpr=_AXES[name][0], tickCount=5, labelOverlap="greedy")
    scale = alt.Scale(nice=False, padding=6)
    return alt.X(f"{name}:Q", title=name, axis=axis, scale=scale)


def _y(panel: Panel, values: Sequence[float | None]) -> alt.Y:
    known = [value for value in values if value is not None]
    wide = panel.log and known and max(known) > 50 * min(known) > 0
    scale = alt.Scale(type="log") if wide else alt.Scale(zero=panel.from_zero)
    return alt.Y("value:Q", title=None, axis=alt.Axis(format=panel.format), scale=scale)


def _dots(curves: alt.Chart, panel: Panel, tooltip: list[alt.Tooltip]) -> alt.Chart:
    """Points that show where there are few, or at the pointer, and tell their values."""
    key = re.sub(r"\W+", "_", panel.title)  # the selections of one picture need names
    zoom = alt.selection_interval(
        f"zoom_{key}", bind="scales", encodings=["x"], zoom="wheel![event.shiftKey]"
    )
    # Not ``nearest``: Vega-Lite's tooltips of nearest points lose the name of the curve.
    hover = alt.selection_point(f"hover_{key}", on="pointerover", clear="pointerout", empty=False)
    few = alt.Opacity("dot:Q", scale=None)
    dots: alt.Chart = curves.mark_point(filled=True, size=40).add_params(zoom, hover)
    return dots.encode(opacity=alt.condition(hover, alt.value(1), few), tooltip=tooltip)
