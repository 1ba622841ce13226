"""Puts measured fractions of a device's peaks in the place of assumed ones.

python -m benchmarks.fractions benchmarks/results/gpu-DATE.jsonl            prints them
python -m benchmarks.fractions benchmarks/results/gpu-DATE.jsonl --write    and writes them

Written are the constants of ``benchmarks/roofline.py`` and ``llm_train/plan/speed.py``, and the
table of ``docs/performance.md`` that follows from them. What was assumed about them in prose, there
and at the constants, is for whoever writes them to mend: the command ends by naming the lines.

Kernels at the presets' shapes on an H200 give the constants. Products have an inverse fraction of
``a + b (bytes over bandwidth) / (FLOPs over peak)``, and attention one of ``a + b / head + c /
(head sequence)``; both are fitted by least squares of relative errors. The fraction of the memory
is weighed by the time that each kernel takes, and needs element-wise ones: the optimizer's alone
would speak for all. How much slower products are in a step is for ``benchmarks.planned`` to say.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.draw import read
from benchmarks.judge import Row, Rows
from benchmarks.roofline import H200, preset
from benchmarks.studies.environment import ROOT
from benchmarks.studies.fractions import products

ROOFLINE = "benchmarks/roofline.py"
SPEED = "llm_train/plan/speed.py"
PAGE = "docs/performance.md"
PRODUCTS, MEMORY = "MATMUL_EFFICIENCY", "MEMORY_EFFICIENCY"
PRODUCT_FIT = ("PRODUCTS_EFFICIENCY", "PRODUCTS_BANDWIDTH")
ATTENTION_FIT = ("ATTENTION_COST", "ATTENTION_WIDTH", "ATTENTION_AREA")
PLACES = {PRODUCTS: ROOFLINE, **dict.fromkeys((MEMORY, *PRODUCT_FIT, *ATTENTION_FIT), SPEED)}


def reached(rows: Sequence[Row]) -> float:
    """The fraction of the peak over rows together: work at the peak over time taken."""
    ideal = sum(row["fraction"] * row["milliseconds"] for row in rows)
    return float(ideal / sum(row["milliseconds"] for row in rows))


def fitted(rows: Sequence[Row], terms: Sequence[tuple[float, ...]]) -> list[float]:
    """Factors of the terms of each row's inverse fraction; none where rows are too much alike."""
    shares = np.array(terms) * np.array([row["fraction"] for row in rows])[:, None]
    if np.linalg.matrix_rank(shares) < shares.shape[1]:
        return []
    factors: list[float] = np.linalg.lstsq(shares, np.ones(len(rows)))[0].tolist()
    return factors


def product_terms(row: Row) -> tuple[float, float]:
    """One, and the time of its reads and writes over that of its operations, both at the peak."""
    network = preset(row["preset"])[0]
    name = row["case"].removeprefix(f"{row['preset']} ")
    inputs, outputs = next(shape for matrix, *shape in products(network) if matrix == name)
    count = row["amount"] / (6 * inputs * outputs)  # its rows; forward and both gradients
    moved = 6 * (count * inputs + inputs * outputs + count * outputs)
    return 1, moved / H200.bytes_per_second / (row["amount"] / H200.peak_flops("bf16"))


def attention_terms(row: Row) -> tuple[float, float, float]:
    """One, over the width of a head, and over width x sequence."""
    network, sequence, _ = preset(row["preset"])
    return 1, 1 / network.head_dim, 1 / (network.head_dim * sequence)


def measured(rows: Rows) -> dict[str, float]:
    """Constant -> measured value, for those that have rows."""
    found = [row for row in rows.of("fractions") if "fraction" in row]

    def of(*parts: str) -> list[Row]:
        return [row for row in found if row["part"] in parts]

    values = {}
    if multiplied := of("products"):
        values[PRODUCTS] = reached(multiplied)
        factors = fitted(multiplied, [product_terms(row) for row in multiplied])
        values |= {name: 1 / x for name, x in zip(PRODUCT_FIT, factors, strict=False)}
    if attended := fastest(of("attention")):
        factors = fitted(attended, [attention_terms(row) for row in attended])
        values |= dict(zip(ATTENTION_FIT, factors, strict=False))
    if of("element-wise"):
        values[MEMORY] = reached(of("element-wise", "optimizer"))
    return {name: float(f"{value:.3g}") for name, value in values.items()}


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
    new, count = re.subn(rf"(?m)^{constant} = [0-9.]+$", f"{constant} = {value!r}", text)
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
        print(f"{constant} = {value!r} in {PLACES[constant]}")
    if arguments.write:
        write(values)
        print(f"written; for you to mend: what {ROOFLINE}, {SPEED} and {PAGE} say of them")


if __name__ == "__main__":
    main()
