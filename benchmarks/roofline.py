"""Prints the roofline of every preset on one H200 as Markdown: python -m benchmarks.roofline."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml

from llm_train.model.network.mlp import default_hidden
from llm_train.plan.roofline import H200, Roofline, Shape, roofline

CONFIGS = Path(__file__).parents[1] / "configs"
PRESETS = (
    "gpt2-124m",
    "gpt2-350m",
    "gpt2-774m",
    "gpt2-1.5b",
    "llama-1b",
    "llama-3b",
    "llama-8b",
)


def shape_of(config: dict[str, Any]) -> Shape:
    """Returns the network and batch of a parsed YAML file; one device does the whole step."""
    network, batch = config["model"]["network"]["init_args"], config["batch"]
    activation = network.get("activation", "swiglu")
    multiple = network.get("pad_vocab_to", 1)
    return Shape(
        layers=network["layers"],
        width=network["width"],
        heads=network["heads"],
        kv_heads=network.get("kv_heads") or network["heads"],
        mlp_width=network.get("mlp_width") or default_hidden(activation, network["width"]),
        gated=activation == "swiglu",
        rotary=network.get("positions", "rotary") == "rotary",
        vocab=multiple * math.ceil(network["vocab_size"] / multiple),
        tied=network.get("tied", False),
        sequence=batch["sequence"],
        micro_batch=batch["per_device"],
        micro_batches=batch["tokens"] // (batch["sequence"] * batch["per_device"]),
    )


def preset(name: str) -> Shape:
    """Returns the shape of a shipped configuration."""
    return shape_of(yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")))


def table() -> str:
    """Returns one row per preset: each part's share of the time, and the resulting totals."""
    parts = list(roofline(preset(PRESETS[0]), H200).parts)
    head = ["preset", "sequence", "GFLOPs per token", *parts, "tokens/s", "MFU"]
    lines = [_line(head), _line(["---", *["---:"] * (len(head) - 1)])]
    for name in PRESETS:
        shape = preset(name)
        lines.append(_line([name, f"{shape.sequence:,}", *_cells(roofline(shape, H200))]))
    return "\n".join(lines)


def _cells(found: Roofline) -> list[str]:
    shares = [part.seconds / found.seconds_per_token for part in found.parts.values()]
    return [
        f"{found.flops_per_token / 1e9:.3g}",
        *(f"{share:.1%}" for share in shares),
        f"{found.tokens_per_second:,.0f}",
        f"{found.mfu:.1%}",
    ]


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    print(table())
