"""Measures what attention costs against linear layers, over sequence and width.

python -m benchmarks.theory.complexity [--out PREFIX], minutes on one core. Writes PREFIX.json and
PREFIX.png, and prints the table of docs/theory/complexity.md. Forward and backward of one block's
linear layers and of its causal attention alternate, and each time is the least of several.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import altair as alt
import torch
import vl_convert
from torch import Tensor
from torch.nn import functional as F

from llm_train.analysis.fits import power_law
from llm_train.report.chart import STYLE

SEQUENCES = (128, 256, 512, 1024, 2048, 4096)
WIDTHS = (128, 256, 512)
HEAD = 64
TOKENS = 4096
ROUNDS = 5


def linear(width: int) -> Callable[[], None]:
    """The 12 D^2 weights of a block: q, k, v, output and an MLP of four times the width."""
    x = torch.randn(TOKENS, width, requires_grad=True)
    shapes = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]
    weights = [torch.randn(i, o, requires_grad=True) for i, o in shapes]
    wide = torch.randn(TOKENS, 4 * width, requires_grad=True)

    def step() -> None:
        inputs = (x, x, x, wide)
        outputs = [a @ w for a, w in zip(inputs, weights, strict=True)]
        torch.autograd.grad([o.sum() for o in outputs], [x, wide, *weights])

    return step


def attention(sequence: int, width: int) -> Callable[[], None]:
    """Causal attention of as many tokens, by the kernel that training uses."""
    shape = (TOKENS // sequence, width // HEAD, sequence, HEAD)
    q, k, v = (torch.randn(shape, requires_grad=True) for _ in range(3))

    def step() -> None:
        out: Tensor = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        torch.autograd.grad(out.sum(), [q, k, v])

    return step


def milliseconds(works: list[Callable[[], None]]) -> list[float]:
    """The least time of each, taken in turns."""
    found = [float("inf")] * len(works)
    for _ in range(ROUNDS):
        for number, work in enumerate(works):
            begun = time.perf_counter()
            work()
            found[number] = min(found[number], 1000 * (time.perf_counter() - begun))
    return found


def main() -> None:
    """Measures, prints, draws."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="docs/theory/complexity", metavar="PREFIX")
    prefix = Path(parser.parse_args().out)
    torch.set_num_threads(1)
    rows = []
    for width in WIDTHS:
        works = [linear(width), *(attention(sequence, width) for sequence in SEQUENCES)]
        layers, *others = milliseconds(works)
        for sequence, own in zip(SEQUENCES, others, strict=True):
            rows.append({"width": width, "sequence": sequence, "linear": layers, "attention": own})
    named = f"torch {torch.__version__}, 1 thread, {platform.processor() or platform.machine()}"
    prefix.with_suffix(".json").write_text(json.dumps({"on": named, "rows": rows}, indent=1) + "\n")
    print(table(rows))
    picture = alt.Chart({"values": rows}).transform_calculate(
        share="datum.attention / datum.linear", name="'width ' + datum.width"
    )
    lines = picture.mark_line(point=True).encode(
        x=alt.X("sequence:Q", scale=alt.Scale(type="log", base=2)),
        y=alt.Y("share:Q", title="attention / linear layers", scale=alt.Scale(type="log")),
        color=alt.Color("name:N", title=None, sort=None),
    )
    whole = lines.properties(width=560, height=320, background="white")
    png = vl_convert.vegalite_to_png(whole.to_dict(), config=STYLE, scale=1)
    prefix.with_suffix(".png").write_bytes(png)


def table(rows: list[dict[str, float]]) -> str:
    """Milliseconds, their ratio, and where the two costs cross, by width."""
    lines = [
        "| width | linear, ms | " + " | ".join(f"S = {s}" for s in SEQUENCES) + " | crossover |"
    ]
    lines.append("|" + "---|" * (len(SEQUENCES) + 3))
    for width in WIDTHS:
        own = [row for row in rows if row["width"] == width]
        cells = [f"{row['attention']:.1f}" for row in own]
        law = power_law([row["sequence"] for row in own[2:]], [row["attention"] for row in own[2:]])
        crossover = (own[0]["linear"] / law.factor) ** (1 / law.exponent)
        where = f"S = {crossover:,.0f} = {crossover / width:.1f} D"
        lines.append(f"| {width} | {own[0]['linear']:.1f} | {' | '.join(cells)} | {where} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
