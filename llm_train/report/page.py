"""The HTML page: ``page.html``, filled in."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import jinja2
import vl_convert

from llm_train.report.chart import STYLE, axes, charts, time_chart, title_of
from llm_train.report.difference import differing
from llm_train.report.run import RecordedRun
from llm_train.trainer.logger.records import Record


def page(runs: Mapping[str, RecordedRun], *, live: bool = False, library: bool = True) -> str:
    """The whole page, every value escaped.

    Args:
        runs: by what they are called.
        live: whether it asks its server for news.
        library: whether what draws is in it; news come without.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"text": _text, "row": _row}
    specifications = [
        each.properties(width="container", height=170 if number else 300).to_dict()
        for number, each in enumerate(charts(runs))
    ]
    if (times := time_chart(runs)) is not None:
        specifications.append(times.properties(width="container", height=30 * len(runs)).to_dict())
    summaries = [run.summary() for run in runs.values()]
    return environment.get_template("page.html").render(
        runs=runs,
        title=title_of(runs),
        summary={
            row: [each.get(row, "") for each in summaries]
            for row in dict.fromkeys(row for each in summaries for row in each)
        },
        differing=differing([*runs.values()]),
        drawn={
            "specifications": specifications,
            "axes": {name: x.to_dict() for name, x in axes(runs).items()},
            "style": STYLE,
            "runs": list(runs),
        },
        colors=STYLE["range"]["category"],  # type: ignore[index]
        library=_library() if library else "",
        live=live,
    )


@cache
def _library() -> str:
    """Vega, Vega-Lite and their embedding as one script, which takes seconds to make."""
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")


def _text(value: object) -> str:
    """Thousands separated, floats with six digits, the values of a mapping after their names.

    >>> _text({"predicted": {"parameters": 1024, "shares": [0.5, 1e-3]}, "done": True})
    'predicted (parameters 1,024, shares 0.5, 0.001), done True'
    """
    if isinstance(value, Mapping):
        inner = {
            n: f"({_text(v)})" if isinstance(v, Mapping) else _text(v) for n, v in value.items()
        }
        return ", ".join(f"{name} {text}" for name, text in inner.items())
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,.0f}" if value == value // 1 else f"{value:.6g}"


def _row(event: Record) -> tuple[str, str]:
    """When something happened, and what."""
    time = str(event.get("time", ""))[:19].replace("T", " ")
    details = {key: value for key, value in event.items() if key not in ("event", "step", "time")}
    text = f"{event['event'].replace('_', ' ')} at step {event['step']:,}"
    return f"{time} UTC" if time else "", f"{text}: {_text(details)}" if details else text
