"""Four panels: loss, learning rate, gradient norm, throughput.

Figures are built as objects, without pyplot: no global state, no window, no choice of backend left
behind in the process.
"""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_train.errors import ConfigError
from llm_train.report.run import Run, Series, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BLUE, _ORANGE, _GREEN, _RED, _GREY = "#1f6fb4", "#e07b12", "#2e8b57", "#c0392b", "#6b7280"
_STYLE: dict[Any, Any] = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": "#9ca3af",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e5e7eb",
    "grid.linewidth": 0.8,
    "legend.facecolor": "white",
    "legend.edgecolor": "none",
    "legend.framealpha": 0.9,
    "xtick.color": "#374151",
    "ytick.color": "#374151",
}


def draw(run: Run) -> bytes:
    """The picture of a run, as the bytes of a PNG."""
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError:
        raise ConfigError(
            "a report needs matplotlib, which is not installed: pip install llm-train[report]"
        ) from None
    with matplotlib.rc_context(_STYLE):
        layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
        figure = Figure(figsize=(12, 8.2), dpi=110, layout=layout, facecolor="white")
        FigureCanvasAgg(figure)
        figure.suptitle(run.name, fontsize=15, fontweight="bold", parse_math=False)
        grid = figure.add_gridspec(2, 3, height_ratios=(1.5, 1), hspace=0.06, wspace=0.04)
        _loss(run, figure.add_subplot(grid[0, :]))
        _learning_rate(run, figure.add_subplot(grid[1, 0]))
        _gradient_norm(run, figure.add_subplot(grid[1, 1]))
        _throughput(run, figure.add_subplot(grid[1, 2]))
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _loss(run: Run, axes: Axes) -> None:
    train, val = run.series("train/loss"), run.series("val/loss")
    _curve(axes, train, _BLUE, "training")
    if val.x:
        axes.plot(
            val.x,
            _gaps(val.y),
            color=_ORANGE,
            linewidth=1.6,
            marker="o",
            markersize=5,
            markeredgecolor="white",
            label="validation",
        )
    bad = sorted({*run.not_finite("train/loss"), *run.not_finite("val/loss")})
    if bad:
        axes.plot(
            [run.x(step) for step in bad],
            [0.015] * len(bad),
            "x",
            color=_RED,
            transform=axes.get_xaxis_transform(),
            label="not finite",
            clip_on=False,
        )
    _resumes(run, axes, label="resumed")
    _frame(run, axes, "Loss", [*train.y, *val.y])
    axes.set_ylabel("nats per token")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper right", ncols=4)
    if run.tokens_per_step:
        scale = run.tokens_per_step

        def to_steps(tokens: Any) -> Any:
            return tokens / scale

        def to_tokens(steps: Any) -> Any:
            return steps * scale

        top = axes.secondary_xaxis("top", functions=(to_steps, to_tokens))
        _x_axis(top, "steps")
        top.spines["top"].set_visible(True)
        axes.set_title("Loss", pad=10)


def _learning_rate(run: Run, axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter

    series = run.series("optimizer/lr")
    _curve(axes, series, _GREEN, "", smooth=False)
    _resumes(run, axes)
    _frame(run, axes, "Learning rate", series.y, from_zero=True)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))


def _gradient_norm(run: Run, axes: Axes) -> None:
    series = run.series("grad/norm")
    _curve(axes, series, _BLUE, "")
    _resumes(run, axes)
    positive = [y for y in series.y if math.isfinite(y) and y > 0]
    wide = bool(positive) and max(positive) / min(positive) > 50
    _frame(run, axes, "Gradient norm, before clipping", series.y, from_zero=not wide, log=wide)


def _throughput(run: Run, axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, PercentFormatter

    series, mfu = run.series("throughput/tokens_per_s"), run.series("throughput/mfu")
    _curve(axes, series, _BLUE, "", smooth=False)
    _resumes(run, axes)
    _frame(run, axes, "Throughput, tokens/s", series.y, from_zero=True)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: short(y)))
    known = [y for y in mfu.y if math.isfinite(y)]
    if known:
        right = axes.twinx()
        right.plot(mfu.x, _gaps(mfu.y), color=_ORANGE, linewidth=1.4, marker=_marker(mfu))
        right.set_ylim(0, max(known) * 1.6 or 1.0)  # room, so that the two curves do not cover
        right.yaxis.set_major_formatter(
            PercentFormatter(1.0, decimals=0 if max(known) > 0.05 else 1)
        )
        right.set_ylabel("MFU", color=_ORANGE)
        right.tick_params(axis="y", colors=_ORANGE)
        right.grid(False)
        axes.set_title("Throughput, tokens/s, and MFU")


def _curve(axes: Axes, series: Series, color: str, label: str, *, smooth: bool = True) -> None:
    """A line; when it is long, the values faintly and their running mean over them."""
    if not series.x:
        axes.text(0.5, 0.5, "not logged", transform=axes.transAxes, ha="center", color=_GREY)
        return
    y = np.asarray(_gaps(series.y))
    if not smooth or len(y) < 60:
        axes.plot(
            series.x,
            y,
            color=color,
            linewidth=1.6,
            label=label,
            marker=_marker(series),
            markersize=4,
        )
        return
    axes.plot(series.x, y, color=color, linewidth=0.8, alpha=0.3)
    axes.plot(series.x, _running_mean(y, len(y) // 40), color=color, linewidth=1.8, label=label)


def _running_mean(y: np.ndarray[Any, Any], half: int) -> np.ndarray[Any, Any]:
    """Mean of the finite values among the ``half`` neighbours on each side, fewer at the ends.

    At the start, where a loss falls steeply, the window stays symmetric, or the mean would lag; at
    the end it keeps its left half, or the last values would be noise.
    """
    finite = np.isfinite(y)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, y, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    index = np.arange(len(y))
    left = np.minimum(half, index)
    first, last = index - left, index + np.minimum(left, len(y) - 1 - index) + 1
    total, number = sums[last] - sums[first], counts[last] - counts[first]
    mean = np.divide(total, number, out=np.full(len(y), np.nan), where=number > 0)
    return np.where(finite, mean, np.nan)


def _frame(
    run: Run, axes: Axes, title: str, y: list[float], *, from_zero: bool = False, log: bool = False
) -> None:
    """Title, limits and ticks; limits never depend on values that are not finite."""
    axes.set_title(title)
    finite = [value for value in y if math.isfinite(value)]
    if log:
        axes.set_yscale("log")
    elif from_zero and finite:
        axes.set_ylim(0, max(finite) * 1.12 or 1.0)
    end = run.x(run.records[-1]["step"])
    axes.set_xlim(-0.01 * end, end * 1.015 or 1.0)
    _x_axis(axes, "tokens" if run.tokens_per_step else "steps")


def _x_axis(axes: Any, label: str) -> None:
    from matplotlib.ticker import FuncFormatter

    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: short(x)))
    axes.set_xlabel(label, color="#374151")


def _resumes(run: Run, axes: Axes, label: str = "") -> None:
    for event in run.events:
        if event["event"] == "resume":
            axes.axvline(
                run.x(event["step"]), color=_GREY, linewidth=1, linestyle="--", label=label
            )
            label = ""


def _gaps(y: list[float]) -> list[float]:
    """Infinite values as gaps: a line to infinity would be drawn nowhere and stretch the axis."""
    return [value if math.isfinite(value) else math.nan for value in y]


def _marker(series: Series) -> str:
    return "o" if len(series.x) < 12 else ""
