"""The HTML page: one file with everything inside, in the colours that the reader's system asks for.

Its policy lets the browser fetch nothing, so that it shows the same with and without a network.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from html import escape

import vl_convert

from llm_train.report.chart import STYLE, charts
from llm_train.report.run import Run
from llm_train.trainer.logger.records import Record

_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'"
_CSS = """
:root { color-scheme: light dark; --soft: color-mix(in srgb, currentColor 65%, transparent);
        --line: color-mix(in srgb, currentColor 15%, transparent); }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1120px; margin: 2rem auto;
       padding: 0 1.2rem;
       color: light-dark(#1f2937, #d6dae0); background: light-dark(#fff, #14171c); }
h1 { font-size: 1.5rem; margin: 0 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
h3 { font-size: .95rem; margin: 1rem 0 .2rem; color: var(--soft); }
table { border-collapse: collapse; }
td { padding: .15rem 1.2rem .15rem 0; border-bottom: 1px solid var(--line); vertical-align: top;
     overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
td:first-child { color: var(--soft); min-width: 8rem; }
.charts { display: grid; gap: 1.2rem;
          grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); }
.charts > * { min-width: 0; width: 100%; }
.charts > :first-child { grid-column: 1 / -1; }
.sections { columns: 2 26rem; }
.sections section { break-inside: avoid; }
pre { border: 1px solid var(--line); padding: 1rem; overflow-x: auto; font-size: 13px; }
summary { cursor: pointer; margin-top: 2rem; font-weight: 600; }
.note { color: var(--soft); font-size: .85rem; }
#vg-tooltip-element { visibility: hidden; position: fixed; padding: .4rem .6rem; font-size: 13px;
  background: light-dark(#fff, #23272e); border: 1px solid var(--line); pointer-events: none; }
#vg-tooltip-element.visible { visibility: visible; }
"""
_OPTIONS = {
    "actions": False,
    "ast": True,  # expressions are interpreted: the policy allows no eval
    "renderer": "svg",  # in which ``currentColor`` follows the page
    "config": STYLE,
    "tooltip": {"disableDefaultStyle": True},
}


def page(run: Run) -> str:
    """The whole page."""
    name = escape(run.name)
    sections = [
        f"<section><h3>{escape(title)}</h3>{_table(values.items())}</section>"
        for title, values in run.derived.items()
        if values
    ]
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        f"<title>{name}</title><style>{_CSS}</style></head><body>",
        f"<h1>{name}</h1>",
        _table(run.summary().items()),
        _curves(run),
    ]
    if sections:
        parts += ['<h2>Derived from the configuration</h2><div class="sections">', *sections]
        parts.append("</div>")
    if run.events:
        parts.append("<h2>Events</h2>" + _table((_when(e), _what(e)) for e in run.events))
    if run.config:
        parts.append("<details><summary>Resolved configuration</summary>")
        parts.append(f"<pre>{escape(run.config)}</pre></details>")
    parts.append("</body></html>\n")
    return "\n".join(parts)


def _curves(run: Run) -> str:
    specifications = [
        each.properties(width="container", height=300 if number == 0 else 170).to_dict()
        for number, each in enumerate(charts({run.name: run}))
    ]
    if not specifications:
        return ""
    frames = "".join(f'<div id="chart{number}"></div>' for number in range(len(specifications)))
    # Inside a script only "<" could end it, or begin a comment.
    arguments = json.dumps([specifications, _OPTIONS]).replace("<", "\\u003c")
    return f"""<h2>Curves</h2>
<p class="note">Drag to move, scroll with the shift key to zoom, double-click for the whole run.</p>
<noscript>The curves need JavaScript; report.png shows the same ones.</noscript>
<div class="charts">{frames}</div>
<script>{vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")}</script>
<script>
const [specifications, options] = {arguments};
specifications.forEach((each, number) => vegaEmbed("#chart" + number, each, options));
</script>"""


def _table(rows: Iterable[tuple[str, object]]) -> str:
    cells = (
        f"<tr><td>{escape(name.replace('_', ' '))}</td><td>{escape(_text(value))}</td></tr>"
        for name, value in rows
    )
    return "<table><tbody>" + "\n".join(cells) + "</tbody></table>"


def _text(value: object) -> str:
    """Thousands separated, floats with six digits, the values of a mapping after their names."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,.0f}" if value == value // 1 else f"{value:.6g}"


def _when(event: Record) -> str:
    time = str(event.get("time", ""))[:19].replace("T", " ")
    return f"{time} UTC" if time else ""


def _what(event: Record) -> str:
    details = {key: value for key, value in event.items() if key not in ("event", "step", "time")}
    text = f"{event['event']} at step {event['step']:,}".replace("_", " ")
    return (
        f"{text}: " + "; ".join(f"{k} {_text(v)}" for k, v in details.items()) if details else text
    )
