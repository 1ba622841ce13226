"""Draws docs/theory/convergence.png: descent below, between and above the limits of its rate.

python -m benchmarks.theory.convergence, seconds on one core.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import altair as alt
import torch
import vl_convert
from torch import Tensor, nn

from benchmarks.usage import arguments
from llm_train.analysis import Point, descend, gradient, largest_eigenvalue, loss_of, moved
from llm_train.model.loss import CausalLM
from llm_train.model.network import Transformer, initialise
from llm_train.report.chart import STYLE

PICTURE = Path(__file__).parents[2] / "docs" / "theory" / "convergence.png"
MULTIPLES = (0.5, 1.0, 1.8, 2.2)
STEPS = 40
_CURVATURES = torch.tensor([8.0, 2.0, 0.5], dtype=torch.float64)


class Scored(nn.Module):
    """The loss of a Transformer of two layers on four random sequences, in float64."""

    def __init__(self) -> None:
        super().__init__()
        network = Transformer(vocab_size=17, layers=2, width=8, heads=2, max_sequence=8)
        self.network = network.build()
        initialise(self.network, 3)
        self.double()
        self.tokens = torch.randint(17, (4, 9), generator=torch.Generator().manual_seed(1))

    def forward(self) -> Tensor:
        """Nats per token."""
        loss = partial(CausalLM(), targets=self.tokens[:, 1:])
        return self.network(self.tokens[:, :-1], loss).objective / 32


def quadratic(at: Point) -> Tensor:
    """Half the sum of curvature times square."""
    return 0.5 * (_CURVATURES * at["w"] ** 2).sum()


def main() -> None:
    """Runs both, and draws."""
    arguments()
    loss, at = loss_of(Scored())
    for _ in range(100):
        at = moved(at, gradient(loss, at), -0.3)
    limit = largest_eigenvalue(loss, at).value
    start = {"w": torch.ones(3, dtype=torch.float64)}
    cases = [
        ("quadratic, L = 8", partial(descend, quadratic, start), 8.0),
        (f"Transformer, L = {limit:.3g}", partial(descend, loss, at), limit),
    ]
    charts = []
    for title, descent, sharpness in cases:
        rows = [
            {"step": step, "loss": value, "rate": f"{multiple:g} / L"}
            for multiple in MULTIPLES
            for step, value in enumerate(descent(multiple / sharpness, STEPS))
        ]
        chart = alt.Chart({"values": rows}).mark_line(strokeWidth=1.8)
        y = alt.Y("loss:Q", title="loss", scale=alt.Scale(type="log"))
        color = alt.Color("rate:N", title=None, sort=None)
        size = {"width": 640, "height": 220, "title": title}
        charts.append(chart.encode(x="step:Q", y=y, color=color).properties(**size))
    whole = alt.vconcat(*charts, background="white")
    PICTURE.write_bytes(vl_convert.vegalite_to_png(whole.to_dict(), config=STYLE, scale=1))


if __name__ == "__main__":
    main()
