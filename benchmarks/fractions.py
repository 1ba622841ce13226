"""Puts measured fractions of a device's peaks in the place of assumed ones.

python -m benchmarks.fractions benchmarks/results/gpu-DATE.jsonl            prints them
python -m benchmarks.fractions benchmarks/results/gpu-DATE.jsonl --write    and writes them

Written are the constants of ``benchmarks/roofline.py`` and ``llm_train/plan/speed.py``, and the
table of ``docs/performance.md`` that follows from them. What was assumed about them in prose, there
and at the constants, is for whoever writes them to mend: the command ends by naming the lines.

Kernels at the presets' shapes give the roofline's fractions, weighed by the time that each takes.
The planner's matrix products are those of whole steps, whose other parts are what the roofline
says: the ``throughput`` study gives their time.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.draw import read
from benchmarks.judge import Row, Rows
from benchmarks.studies.environment import ROOT

ROOFLINE = "benchmarks/roofline.py"
SPEED = "llm_train/plan/speed.py"
PAGE = "docs/performance.md"
PRODUCTS, ATTENTION, MEMORY = "MATMUL_EFFICIENCY", "ATTENTION_EFFICIENCY", "MEMORY_EFFICIENCY"
PLACES = {PRODUCTS: ROOFLINE, ATTENTION: SPEED, MEMORY: SPEED}


def reached(rows: Sequence[Row]) -> float | None:
    """The fraction of the peak over rows together: work at the peak over time taken."""
    if not rows:
        return None
    ideal = sum(row["fraction"] * row["milliseconds"] for row in rows)
    return float(ideal / sum(row["milliseconds"] for row in rows))


def measured(rows: Rows) -> dict[str, float]:
    """Constant -> measured fraction, for those that have rows."""
    found = [row for row in rows.of("fractions") if "fraction" in row]
    parts = {
        PRODUCTS: [row for row in found if row["part"] == "products"],
        ATTENTION: fastest([row for row in found if row["part"] == "attention"]),
        MEMORY: [row for row in found if row["part"] in ("element-wise", "optimizer")],
    }
    reaches = {name: reached(of) for name, of in parts.items()}
    return {name: round(value, 2) for name, value in reaches.items() if value is not None}


def fastest(rows: Sequence[Row]) -> list[Row]:
    """The faster kernel of each preset."""
    best: dict[str, Row] = {}
    for row in rows:
        other = best.get(row["preset"])
        if other is None or row["milliseconds"] < other["milliseconds"]:
            best[row["preset"]] = row
    return list(best.values())


def replaced(text: str, constant: str, value: float) -> str:
    """A program's text with another value of a constant at the beginning of a line."""
    new, count = re.subn(rf"(?m)^{constant} = [0-9.]+$", f"{constant} = {value:g}", text)
    assert count == 1, f"{constant} stands {count} times at the beginning of a line"
    return new


def write(values: dict[str, float]) -> None:
    """Writes constants, and then the table, which another process prints from them."""
    for constant, value in values.items():
        file = ROOT / PLACES[constant]
        file.write_text(replaced(file.read_text("utf-8"), constant, value), "utf-8")
    command = [sys.executable, "-m", "benchmarks.roofline"]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    page = ROOT / PAGE
    old = re.search(r"(?m)^\| preset \| sequence \|.*\n(?:\|.*\n)+", page.read_text("utf-8"))
    assert old is not None, f"{PAGE} has no table of presets"
    page.write_text(page.read_text("utf-8").replace(old[0], done.stdout), "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--write", action="store_true", help="into the programs and the page")
    arguments = parser.parse_args()
    rows = read(arguments.results)
    for row in rows.of("fractions"):
        if "fraction" in row:
            print(f"{row['case']:40} {row['milliseconds']:8.3f} ms  {row['fraction']:6.1%}")
    values = measured(rows)
    if not values:
        sys.exit("there are no rows of the study fractions; scripts/gpu_measure.sh 4 measures them")
    for constant, value in values.items():
        print(f"{constant} = {value:g} in {PLACES[constant]}")
    if arguments.write:
        write(values)
        print(f"written; prose about assumptions: grep -n assumed {ROOFLINE} {SPEED} {PAGE}")


if __name__ == "__main__":
    main()
