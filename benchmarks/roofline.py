"""Prints the roofline of every preset on one H200 as Markdown: python -m benchmarks.roofline.

How fast a training step could be: arithmetic over peak and bytes over bandwidth, part by part. It
is no measurement of a step. The parts are added as if nothing overlapped, each at the fraction of
the device's peak that kernels alone reach there, measured. Recomputation, communication, the host
and whether the state fits into memory are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from benchmarks.usage import arguments
from llm_train.model.network import Transformer
from llm_train.plan.speed import (
    ATTENTION_AREA,
    ATTENTION_COST,
    ATTENTION_WIDTH,
    MEMORY_EFFICIENCY,
)
from llm_train.runtime.devices import Device, device_called

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

MATMUL_EFFICIENCY = 0.81
"""Of the dense peak: bf16 products of the presets by cuBLAS, weighed by time, on an H200."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of a training step, per token.

    Attributes:
        flops: useful operations, forward and backward.
        bytes: moved in addition to what the matrix products move themselves.
        seconds: operations over their attainable rate plus bytes over theirs.
    """

    flops: float
    bytes: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """A training step by parts, per token.

    Attributes:
        parts: by name: the products of the blocks, attention, the head's products with the loss,
            element-wise work (norms, residuals, activations, rotary positions), AdamW.
        peak_flops: of the device.
        tokens_per_step: of one optimizer step on one device.
    """

    parts: dict[str, Part]
    peak_flops: float
    tokens_per_step: int

    @property
    def flops_per_token(self) -> float:
        """Model FLOPs, attention at its causal cost."""
        return sum(part.flops for part in self.parts.values())

    @property
    def seconds_per_token(self) -> float:
        """Of all parts, one after the other."""
        return sum(part.seconds for part in self.parts.values())

    @property
    def seconds_per_step(self) -> float:
        """Of one optimizer step."""
        return self.seconds_per_token * self.tokens_per_step

    @property
    def tokens_per_second(self) -> float:
        """Of one device."""
        return 1 / self.seconds_per_token

    @property
    def mfu(self) -> float:
        """Model FLOPs per second over the dense peak."""
        return self.tokens_per_second * self.flops_per_token / self.peak_flops


def roofline(network: Transformer, device: Device, *, sequence: int, tokens: int) -> Roofline:
    """The parts of a training step in bf16.

    Args:
        network: decoder-only Transformer.
        device: does the whole step.
        sequence: positions of a sample.
        tokens: of one optimizer step.
    """
    peak_flops = device.peak_flops("bf16")

    def part(flops: float = 0, moved: float = 0, efficiency: float = MATMUL_EFFICIENCY) -> Part:
        seconds = flops / (efficiency * peak_flops)
        seconds += moved / (MEMORY_EFFICIENCY * device.bytes_per_second)
        return Part(flops=flops, bytes=moved, seconds=seconds)

    head = network.padded_vocab_size * network.width
    attention = 6 * network.layers * network.width * sequence
    fused = network.fused_bytes()
    parts = {
        "blocks": part(6 * block_parameters(network)),
        "attention": part(attention, efficiency=attention_efficiency(network.head_dim, sequence)),
        "head and loss": part(6 * head, fused.loss),
        "element-wise": part(moved=fused.elementwise),
        "optimizer": part(moved=optimizer_bytes(network) / tokens),
    }
    return Roofline(parts=parts, peak_flops=peak_flops, tokens_per_step=tokens)


def attention_efficiency(head: int, sequence: int) -> float:
    """Of the dense peak of Hopper, by attention alone: 0.23 of GPT-2's heads, 0.44 of Llama's."""
    return 1 / (ATTENTION_COST + ATTENTION_WIDTH / head + ATTENTION_AREA / (head * sequence))


def block_parameters(network: Transformer) -> int:
    """Weights of the matrices of all blocks."""
    width, hidden = network.width, network.hidden
    kv_width = network.head_dim * network.key_value_heads
    attention = 2 * width * (width + kv_width)
    matrices = 3 if network.activation == "swiglu" else 2
    return network.layers * (attention + matrices * width * hidden)


def parameters(network: Transformer) -> int:
    """Weights of all matrices; norms, biases and a table of positions are few."""
    tables = (1 if network.tied else 2) * network.padded_vocab_size * network.width
    return block_parameters(network) + tables


def optimizer_bytes(network: Transformer) -> int:
    """Bytes that one AdamW step reads and writes, clipping included.

    Per parameter: weight, gradient and both moments read and written in fp32 (the gradient's write
    is its scaling by the clipped norm), and the bf16 copy of the weight written: 34 bytes. Divided
    by the tokens of a step, it is the price of a small batch.
    """
    return parameters(network) * (4 * 2 * 4 + 2)


def preset(name: str) -> tuple[Transformer, int, int]:
    """The network of a shipped configuration, its sequence, and the tokens of its step."""
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    settings = config["model"]["network"]["init_args"]
    settings.pop("rotary_scaling", None)  # a class of its own, which costs nothing
    network = Transformer(**settings)
    return network, config["batch"]["sequence"], config["batch"]["tokens"]


def table() -> str:
    """Returns one row per preset: each part's share of the time, and the resulting totals."""
    lines = []
    for name in PRESETS:
        network, sequence, tokens = preset(name)
        found = roofline(network, H200, sequence=sequence, tokens=tokens)
        if not lines:
            head = ["preset", "sequence", "GFLOPs per token", *found.parts, "tokens/s", "MFU"]
            lines += [_line(head), _line(["---", *["---:"] * (len(head) - 1)])]
        lines.append(_line([name, f"{sequence:,}", *_cells(found)]))
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
    arguments()
    print(table())
