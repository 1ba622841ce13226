"""The curves of a run, as Vega-Lite specifications that both page and picture draw.

Text and rules have the colour ``currentColor``, which is the page's own: the same specification is
dark on light and light on dark. A long curve is drawn as means of consecutive records over a faint
band from the smallest to the largest of them, so that no peak is lost and the file stays small.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from statistics import fmean

import altair as alt
import vl_convert

from llm_train.report.run import Point, RecordedRun

_GREY, _RED = "#888888", "#c0392b"
_POINTS = 200  # a curve of twice as many records or more is drawn as means
_DOTS = 30  # a curve of no more points than these shows them
_SHORT = "replace(format({}, '.3~s'), 'G', 'B')"  # d3 writes 300G for 300 billion tokens

STYLE: dict[str, object] = json.loads(Path(__file__).with_name("style.json").read_text("utf-8"))


@dataclass(frozen=True, kw_only=True)
class Panel:
    """What is drawn in one frame.

    Attributes:
        title: above it.
        curves: metric -> what the legend calls it; "" where there is only one.
        format: of the vertical axis, in d3's language.
        from_zero: whether that axis begins at zero.
        log: whether it is logarithmic where the values span more than a factor of 50.
    """

    title: str
    curves: Mapping[str, str]
    format: str = "~g"
    from_zero: bool = True
    log: bool = False


_LOSS = {"train/loss": "training", "val/loss": "validation"}
PANELS = (
    Panel(title="Loss, nats per token", curves=_LOSS, from_zero=False),
    Panel(title="Held out, bits per byte", curves={"val/bits_per_byte": ""}, from_zero=False),
    Panel(title="Gradient norm, before clipping", curves={"grad/norm": ""}, log=True),
    Panel(title="Learning rate", curves={"optimizer/lr": ""}),
    Panel(title="Tokens per second", curves={"throughput/tokens_per_s": ""}, format="~s"),
    Panel(title="Model FLOPs utilisation", curves={"throughput/mfu": ""}, format="~%"),
    Panel(title="Peak memory, GiB", curves={"memory/peak_gib": ""}),
    Panel(title="Gradient noise scale, tokens", curves={"noise/scale_tokens": ""}, log=True),
)


def charts(run: RecordedRun) -> list[alt.LayerChart]:
    """One chart for each panel that the run has values for."""
    metrics = {metric for record in run.records for metric in record}
    return [_chart(run, panel) for panel in PANELS if metrics & panel.curves.keys()]


def png(run: RecordedRun) -> bytes:
    """The charts as one picture: the first above the others, which stand in three columns."""
    nothing = alt.LayerChart(layer=[alt.Chart({"values": [{}]}).mark_text(text="nothing to draw")])
    first, *others = charts(run) or [nothing]
    whole = alt.vconcat(
        first.properties(width=1080, height=300),
        alt.concat(*(each.properties(width=310, height=170) for each in others), columns=3),
        title=alt.TitleParams(run.name, fontSize=18, offset=12),
        background="white",
    ).resolve_scale(color="independent")
    return vl_convert.vegalite_to_png(whole.to_dict(), config=STYLE, scale=1.5)


def _chart(run: RecordedRun, panel: Panel) -> alt.LayerChart:
    scale = run.tokens_per_step or 1.0
    rows = [
        {"curve": curve, **row}
        for metric, curve in panel.curves.items()
        for row in _rows(run.points(metric), scale)
    ]
    crosses = [{"x": p.step * scale} for metric in panel.curves for p in run.not_finite(metric)]
    dashes = [{"x": e["step"] * scale} for e in run.events if e["event"] == "resume"]
    x, y = _x(run.tokens_per_step), _y(run, panel)
    legend = alt.Legend() if len(panel.curves) > 1 else None
    color = alt.Color("curve:N", sort=None, legend=legend)
    curves = alt.Chart({"values": rows}).encode(x=x, y=y, color=color)
    band = curves.mark_area(opacity=0.25).encode(y=alt.Y("low:Q", title=None), y2="high:Q")
    layers, explained = [band, curves.mark_line(strokeWidth=1.8)], []
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
    return alt.LayerChart(
        layer=[*layers, _dots(curves, panel, run.tokens_per_step > 0)], title=title
    )


def _rows(points: Sequence[Point], scale: float) -> Iterator[dict[str, object]]:
    """Means of consecutive values, with the smallest and the largest of those that are finite."""
    size = max(1, len(points) // _POINTS)
    for first in range(0, len(points), size):
        part = points[first : first + size]
        step = fmean(point.step for point in part)
        finite = [point.value for point in part if isfinite(point.value)]
        yield {
            "step": round(step),
            "x": step * scale,
            "value": fmean(finite) if finite else None,
            "low": min(finite, default=None),
            "high": max(finite, default=None),
            "dot": int(len(points) <= _DOTS),
        }


def _x(tokens_per_step: float) -> alt.X:
    """Tokens with the steps below; steps alone where the run logged no tokens."""
    label, title = _SHORT.format("datum.value"), "steps"
    if tokens_per_step:
        steps = f"format(datum.value / {tokens_per_step}, ',.0f')"
        label, title = f"[{label}, {steps}]", "tokens (steps below)"
    axis = alt.Axis(labelExpr=label, tickCount=6)
    return alt.X("x:Q", title=title, axis=axis, scale=alt.Scale(nice=False, padding=6))


def _y(run: RecordedRun, panel: Panel) -> alt.Y:
    values = [point.value for metric in panel.curves for point in run.finite(metric)]
    wide = panel.log and values and max(values) > 50 * min(values) > 0
    scale = alt.Scale(type="log") if wide else alt.Scale(zero=panel.from_zero)
    return alt.Y("value:Q", title=None, axis=alt.Axis(format=panel.format), scale=scale)


def _dots(curves: alt.Chart, panel: Panel, in_tokens: bool) -> alt.Chart:
    """Points that show where there are few, or at the pointer, and tell their values."""
    key = next(iter(panel.curves)).replace("/", "_")  # the selections of one picture need names
    zoom = alt.selection_interval(
        f"zoom_{key}", bind="scales", encodings=["x"], zoom="wheel![event.shiftKey]"
    )
    # Not ``nearest``: Vega-Lite's tooltips of nearest points lose the name of the curve.
    hover = alt.selection_point(f"hover_{key}", on="pointerover", clear="pointerout", empty=False)
    tooltip = [alt.Tooltip("step:Q", format=",")]
    if len(panel.curves) > 1:
        tooltip.insert(0, alt.Tooltip("curve:N"))
    if in_tokens:
        tooltip.append(alt.Tooltip("x:Q", title="tokens", format=",.0f"))
    tooltip.append(alt.Tooltip("value:Q", format=".5~g"))
    few = alt.Opacity("dot:Q", scale=None)
    dots: alt.Chart = curves.mark_point(filled=True, size=60).add_params(zoom, hover)
    return dots.encode(opacity=alt.condition(hover, alt.value(1), few), tooltip=tooltip)
