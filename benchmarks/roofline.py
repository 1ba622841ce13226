"""Prints the roofline of every preset on one H200 as Markdown: python -m benchmarks.roofline."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import yaml

from llm_train.model.network import Transformer
from llm_train.plan.roofline import Roofline, Shape, roofline
from llm_train.runtime.devices import device_called

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


H200 = device_called("h200")


def preset(name: str) -> Shape:
    """The network and batch of a shipped configuration; one device does the whole step."""
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    batch, network = config["batch"], Transformer(**config["model"]["network"]["init_args"])
    sequence, micro_batch = batch["sequence"], batch["per_device"]
    shape = Shape.of(network, sequence=sequence, micro_batch=micro_batch)
    return replace(shape, micro_batches=batch["tokens"] // (sequence * micro_batch))


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
