"""Measures what attention costs against linear layers, over sequence and width.

python -m benchmarks.theory.complexity [--out PREFIX], minutes on one core. Writes PREFIX.json and
PREFIX.png, and prints the table of docs/theory/complexity.md. Forward and backward of one block's
linear layers and of its causal attention alternate, and each processor time is the least of ten.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import altair as alt
import numpy as np
import torch
import vl_convert
from torch import Tensor
from torch.nn import functional as F

from llm_train.report.chart import STYLE

SEQUENCES = (128, 256, 512, 1024, 2048, 4096)
WIDTHS = (128, 256, 512)
HEAD = 64
TOKENS = 4096
ROUNDS = 10


def linear(width: int) -> Callable[[], None]:
    """The 12 D^2 weights of a block: q, k, v, output and an MLP of four times the width."""
    x = torch.randn(TOKENS, width, requires_grad=True)
    shapes = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]
    weights = [torch.randn(i, o, requires_grad=True) for i, o in shapes]
    wide = torch.randn(TOKENS, 4 * width, requires_grad=True)
    back = [torch.randn(TOKENS, o) for _, o in shapes]

    def step() -> None:
        inputs = (x, x, x, wide)
        outputs = [a @ w for a, w in zip(inputs, weights, strict=True)]
        torch.autograd.grad(outputs, [x, wide, *weights], back)

    return step


def attention(sequence: int, width: int) -> Callable[[], None]:
    """Causal attention of as many tokens, by the kernel that training uses."""
    shape = (TOKENS // sequence, width // HEAD, sequence, HEAD)
    q, k, v = (torch.randn(shape, requires_grad=True) for _ in range(3))
    back = torch.randn(shape)

    def step() -> None:
        out: Tensor = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        torch.autograd.grad(out, [q, k, v], back)

    return step


def milliseconds(works: list[Callable[[], None]]) -> list[float]:
    """The least processor time of each, taken in turns."""
    found = [float("inf")] * len(works)
    for _ in range(ROUNDS):
        for number, work in enumerate(works):
            begun = time.process_time()
            work()
            found[number] = min(found[number], 1000 * (time.process_time() - begun))
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
        times = [row["attention"] for row in own]
        cells = [f"{each:.1f}" for each in times]
        # On a straight line between the neighbours, in logarithms.
        crossover = np.exp(np.interp(np.log(own[0]["linear"]), np.log(times), np.log(SEQUENCES)))
        where = f"S = {crossover:,.0f} = {crossover / width:.1f} D"
        lines.append(f"| {width} | {own[0]['linear']:.1f} | {' | '.join(cells)} | {where} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
