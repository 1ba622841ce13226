"""Draws gradient norms by depth at initialisation: python -m benchmarks.depth [--out PICTURE.svg].

Three claims about where norms stand, at 4, 16 and 64 layers:

- post: gradients are largest at the last layer and fall towards the first, the more layers the
  more (Xiong et al., arXiv:2002.04745, theorem 1);
- pre: that of the last layer falls as 1 / sqrt(layers) (the same);
- DeepNorm: what one update of the matrices changes is bounded whatever the depth; with post it
  grows (Wang et al., arXiv:2203.00555, theorem 4.2). To first order gradient descent changes the
  loss by the rate times the squared norm of the gradient, which is what is printed.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import altair as alt
import torch

from llm_train.model.loss import CausalLM
from llm_train.model.network import LanguageModel, Transformer, initialise

DEPTHS = (4, 16, 64)
PLACEMENTS = ("pre", "post", "deepnorm")
_TOKENS = torch.randint(256, (4, 33), generator=torch.Generator().manual_seed(0))


def built(placement: str, layers: int, width: int = 64, seed: int = 0) -> LanguageModel:
    """A small GPT with Xavier's weights in its blocks, times DeepNorm's beta where it has one."""
    config = Transformer(
        vocab_size=256, layers=layers, width=width, heads=4, max_sequence=32, norm="layernorm",
        activation="relu", positions="learned", init_std=1.0, norm_placement=placement,
        init={
            "layers.*": "deepnorm" if placement == "deepnorm" else "xavier",
            "head.*": "lecun",
        },
    )  # fmt: skip
    network = config.build()
    initialise(network, seed)
    return network


def backward(network: LanguageModel) -> None:
    """Gradients of the mean loss of some random tokens."""
    sums = network(_TOKENS[:, :-1], partial(CausalLM(), targets=_TOKENS[:, 1:]))
    (sums.objective / sums.tokens).backward()


def gradient_norms(placement: str, layers: int, width: int = 64) -> list[float]:
    """Norm of the gradient at the last weight of each feed-forward part, first layer first."""
    network = built(placement, layers, width)
    backward(network)
    parameters = dict(network.named_parameters())
    found = [parameters[f"layers.{layer}.mlp.down.weight"].grad for layer in range(layers)]
    return [gradient.norm().item() for gradient in found if gradient is not None]


def squared_norm(placement: str, layers: int, width: int = 64) -> float:
    """Of the gradient at all matrices in blocks: the change of the loss over the learning rate."""
    network = built(placement, layers, width)
    backward(network)
    return sum(
        parameter.grad.square().sum().item()
        for name, parameter in network.named_parameters()
        if name.startswith("layers.") and parameter.dim() > 1 and parameter.grad is not None
    )


def draw(out: Path) -> None:
    """One panel for each placement, one line for each depth."""
    rows = [
        {"placement": placement, "layers": str(layers), "depth": index / (layers - 1), "norm": norm}
        for placement in PLACEMENTS
        for layers in DEPTHS
        for index, norm in enumerate(gradient_norms(placement, layers))
    ]
    lines = (
        alt.Chart(alt.Data(values=rows))
        .mark_line()
        .encode(
            x=alt.X("depth:Q", title="layer / last layer", axis=alt.Axis(values=[0, 0.5, 1])),
            y=alt.Y("norm:Q", title="norm of the gradient", scale=alt.Scale(type="log")),
            color=alt.Color("layers:N", sort=[str(n) for n in DEPTHS], title="layers"),
            column=alt.Column("placement:N", sort=list(PLACEMENTS), title=None),
        )
        .properties(width=180, height=180)
    )
    lines.save(str(out))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/theory/depth.svg"))
    out = parser.parse_args().out
    draw(out)
    print(f"{'':10}{'layers':>8}{'first':>10}{'last':>10}{'last/first':>12}{'one update':>12}")
    for placement in PLACEMENTS:
        for layers in DEPTHS:
            norms = gradient_norms(placement, layers)
            change = squared_norm(placement, layers)
            figures = f"{norms[0]:10.2e}{norms[-1]:10.2e}{norms[-1] / norms[0]:12.2f}{change:12.3f}"
            print(f"{placement:10}{layers:8}{figures}")


if __name__ == "__main__":
    main()
