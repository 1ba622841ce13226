"""The HTML page: one file, the picture inside, nothing fetched, every value escaped."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape
from typing import Any

from llm_train.report.run import Run

_CSS = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2937; background: #fff;
       max-width: 1120px; margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.5rem; margin: 0 0 1rem; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
h3 { font-size: .95rem; margin: 1rem 0 .2rem; color: #4b5563; }
img { width: 100%; height: auto; border: 1px solid #e5e7eb; border-radius: 6px; }
table { border-collapse: collapse; }
td { padding: .15rem 1.6rem .15rem 0; border-bottom: 1px solid #f0f1f3; vertical-align: top; }
td:first-child { color: #4b5563; }
td:last-child { font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.sections { columns: 2 26rem; }
.sections section { break-inside: avoid; }
pre { background: #f6f7f9; padding: 1rem; overflow-x: auto; font-size: 13px; border-radius: 6px; }
summary { cursor: pointer; margin-top: 2rem; font-weight: 600; }
"""


def page(run: Run, picture: bytes) -> str:
    """The whole page.

    Args:
        run: what to report.
        picture: bytes of a PNG.
    """
    name = escape(run.name)
    image = base64.b64encode(picture).decode()
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{name}</title><style>{_CSS}</style></head><body>",
        f"<h1>{name}</h1>",
        _table(run.summary()),
        f'<h2>Curves</h2><img alt="Loss, learning rate, gradient norm and throughput of {name}"'
        f' src="data:image/png;base64,{image}">',
    ]
    if run.derived:
        parts.append('<h2>Derived from the configuration</h2><div class="sections">')
        for section, values in run.derived.items():
            parts.append(f"<section><h3>{escape(section)}</h3>{_table(values.items())}</section>")
        parts.append("</div>")
    if run.events:
        parts.append("<h2>Events</h2>" + _table((_when(e), _what(e)) for e in run.events))
    if run.config:
        parts.append("<details><summary>Resolved configuration</summary>")
        parts.append(f"<pre>{escape(run.config)}</pre></details>")
    parts.append("</body></html>\n")
    return "\n".join(parts)


def _table(rows: Iterable[tuple[str, Any]]) -> str:
    cells = (
        f"<tr><td>{escape(str(name))}</td><td>{escape(_text(value))}</td></tr>"
        for name, value in rows
    )
    return "<table><tbody>" + "\n".join(cells) + "</tbody></table>"


def _text(value: Any) -> str:
    """Whole numbers with thousands separated, floats with six digits, the rest as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,.0f}" if value == value // 1 else f"{value:.6g}"


def _when(event: dict[str, Any]) -> str:
    time = str(event.get("time", ""))[:19].replace("T", " ")
    return f"{time} UTC" if time else ""


def _what(event: dict[str, Any]) -> str:
    facts = ", ".join(
        f"{name} {_text(value)}"
        for name, value in event.items()
        if name not in ("event", "step", "time")
    )
    return f"{event['event']} at step {event['step']:,}" + (f": {facts}" if facts else "")
