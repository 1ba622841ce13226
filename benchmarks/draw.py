"""Draws tables and a picture: python -m benchmarks.draw RESULTS.jsonl ... [--out PREFIX]."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.judge import PEERS, Goal, Row, Rows, compare, goals, read_rows

LIMIT = 11_900
"""Length of a summary in characters; a remote command's output is cut off after about as many."""

# Each column of a study's table has a heading, a key and a format.
_RATE = (
    ("tokens/s", "tokens_per_s", ",.0f"),
    ("±", "spread_tokens_per_s", ",.0f"),
    ("MFU", "mfu", ".1%"),
    ("MFU, full attention", "mfu_full_attention", ".1%"),
    ("TFLOP/s", "tflops", ".0f"),
    ("peak GiB", "peak_gib", ".1f"),
    ("reserved GiB", "reserved_gib", ".1f"),
    ("samples", "micro_batch", "d"),
)
_LOSS = (
    ("vocabulary", "vocab", "d"),
    ("width", "width", "d"),
    ("tokens", "tokens", "d"),
    ("ms", "milliseconds", ".2f"),
    ("±", "spread", ".2f"),
    ("extra GiB", "extra_gib", ".2f"),
)
COLUMNS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "throughput": _RATE,
    "peers": (*_RATE, ("ms", "milliseconds", ".2f")),
    "modes": (*_RATE, ("ms", "milliseconds", ".2f")),
    "memory": (*_RATE[:1], *_RATE[5:]),
    "startup": (("seconds", "seconds", ".1f"),),
    "shakespeare": (("seconds", "seconds", ".1f"), ("step", "step", "d"), ("loss", "loss", ".4f")),
    "float8": (*_RATE[:5], *_RATE[5:7]),
    "largest": (("layers", "layers", "d"), ("parameters", "parameters", ",d"), *_RATE[5:7]),
    "ablations": (
        ("ms", "milliseconds", ".2f"),
        ("±", "spread", ".2f"),
        ("as shipped", "baseline_milliseconds", ".2f"),
        ("peak GiB", "peak_gib", ".1f"),
    ),
    "loss": _LOSS,
}


def read(paths: Sequence[Path]) -> Rows:
    """Reads all complete lines of the files, in order; rehearsals count only if alone."""
    rows: list[Row] = []
    for path in paths:
        rows += read_rows(path)
    measured = [row for row in rows if not row["versions"].get("rehearsal")]
    return Rows(measured or rows)


def _cell(value: Any, form: str) -> str:
    return "" if value is None else format(value, form)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def goal_table(lines: Sequence[Goal]) -> str:
    """Lists the goals, each with its verdict."""
    out = [
        _line(["goal", "measured", "must", "aim", "verdict", "note"]),
        "|---|---:|---:|---:|---|---|",
    ]
    for goal in lines:
        form = ",.0f" if goal.must >= 1000 else ".4g"
        cells = [_cell(value, form) for value in (goal.value, goal.must, goal.aim)]
        out.append(_line([f"{goal.name}, {goal.unit}", *cells, goal.verdict, goal.note[:80]]))
    return "\n".join(out)


def study_table(rows: Rows, study: str) -> str:
    """Lists the cases of one study, with the reason for each case that has no numbers."""
    columns = COLUMNS[study]
    out = [f"### {study}", "", _line(["case", *(heading for heading, _, _ in columns), ""])]
    out.append("|---|" + "---:|" * len(columns) + "---|")
    base = rows.get(study, "ours")
    for row in rows.of(study):
        cells = [_cell(row.get(key), form) for _, key, form in columns]
        note = str(row.get("error") or row.get("skipped") or "")[:80]
        if row is not base and "milliseconds" in base and "milliseconds" in row:
            ratio, verdict = compare(base, row)
            note = f"ours x {ratio:.3f}, {verdict}"
        elif "baseline_milliseconds" in row:
            shipped = {
                "milliseconds": row["baseline_milliseconds"],
                "spread": row["baseline_spread"],
            }
            ratio, verdict = compare(shipped, row)
            note = f"as shipped x {ratio:.3f}, {verdict}"
        out.append(_line([row["case"], *cells, note]))
    return "\n".join(out)


def summary(rows: Rows, limit: int = LIMIT) -> str:
    """Returns all tables as Markdown, without the least important ones if they are too long."""
    versions = rows.all[-1]["versions"] if rows.all else {}
    measured_with = ", ".join(f"{name} {value}" for name, value in versions.items() if value)
    parts = [measured_with, goal_table(goals(rows))]
    if versions.get("rehearsal"):
        parts.insert(0, "A rehearsal of tiny twins on a CPU: none of these numbers means anything.")
    parts += [study_table(rows, study) for study in COLUMNS if rows.of(study)]
    text, left_out = "", "\n\nMore rows: python -m benchmarks.draw FILE.jsonl\n"
    for part in parts:
        lines = part.split("\n")
        if len(text) + len(part) + len(left_out) + 2 > limit:
            for line in lines:
                if len(text) + len(line) + len(left_out) + 2 > limit:
                    return text + left_out
                text += ("\n\n" if line is lines[0] else "\n") + line
        text += "\n\n" + part
    return text.strip() + "\n"


def picture(rows: Rows, path: Path) -> None:
    """Draws shapes against their goals, peers, and ablations, side by side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(16, 5))
    shapes = [r for r in rows.of("throughput") if r.get("roof") and "tokens_per_s" in r]
    for index, row in enumerate(shapes):
        left.barh(index, row["tokens_per_s"] / row["roof"], color="tab:blue")
        left.plot(row["must"] / row["roof"], index, "k|", markersize=18)
        left.plot(row["aim"] / row["roof"], index, "g|", markersize=18)
    left.set_yticks(range(len(shapes)), [row["case"] for row in shapes])
    left.set_title("tokens/s over the realistic roof (black: must, green: aim)")
    names = ["ours", *(name for name, _, _ in PEERS)]
    peers = [row for name in names if "tokens_per_s" in (row := rows.get("peers", name))]
    rates = [row["tokens_per_s"] for row in peers]
    noise = [2 * row["spread_tokens_per_s"] for row in peers]
    middle.bar([row["case"] for row in peers], rates, yerr=noise, color="tab:orange")
    middle.set_title("tokens/s at 124M, one run (bars: twice the spread)")
    changed = [row for row in rows.of("ablations") if "baseline_milliseconds" in row]
    costs = [100 * (r["milliseconds"] / r["baseline_milliseconds"] - 1) for r in changed]
    right.barh([row["case"] for row in changed], costs, color="tab:green")
    right.set_title("step time against ours as shipped, %")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, help="also write PREFIX.md and PREFIX.png")
    arguments = parser.parse_args()
    rows = read(arguments.results)
    text = summary(rows, limit=1_000_000)
    print(text)
    if arguments.out:
        arguments.out.with_suffix(".md").write_text(text, "utf-8")
        picture(rows, arguments.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
