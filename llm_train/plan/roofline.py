"""How fast a training step could be: arithmetic over peak, bytes over bandwidth, part by part.

Not a measurement and not a promise. The parts are added as if nothing overlapped, each at a stated
fraction of the device's peak. The fractions are assumptions, taken from what public kernels reach
at large shapes, and not measured here. Recomputation, communication, the host and whether the state
fits into memory are left out.

Everything is counted for one token (a target position) and one device. D width, K key/value
features, M hidden features of the feed-forward part, V rows of the head, L layers, T positions of a
sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

from llm_train.errors import ConfigError
from llm_train.model.network import Transformer
from llm_train.model.network.mlp import default_hidden
from llm_train.runtime.devices import Device

MATMUL_EFFICIENCY = 0.75
"""Of the dense peak: large bf16 products of cuBLAS on Hopper, at the clock that power allows."""

ATTENTION_EFFICIENCY = 0.5
"""Of the dense peak, causal, forward and backward together: FlashAttention 3 and cuDNN."""

MEMORY_EFFICIENCY = 0.85
"""Of the memory's bandwidth: fused element-wise kernels on tensors of many megabytes."""

_BF16 = 2
_FP32 = 4


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A decoder-only Transformer and its batch on one device.

    Attributes:
        layers: blocks.
        width: features of the residual stream; heads * head_dim.
        heads: query heads.
        kv_heads: key/value heads.
        mlp_width: hidden features of the feed-forward part.
        gated: SwiGLU: gate and up instead of up alone.
        rotary: queries and keys are rotated; otherwise positions are a table.
        vocab: rows of the embedding and of the head, padding included.
        tied: embedding and head are one matrix.
        sequence: positions of a sample.
        micro_batch: samples of one forward on one device.
        micro_batches: of one optimizer step on one device.
    """

    layers: int
    width: int
    heads: int
    kv_heads: int
    mlp_width: int
    gated: bool
    rotary: bool
    vocab: int
    tied: bool
    sequence: int
    micro_batch: int
    micro_batches: int = 1

    def __post_init__(self) -> None:
        for key, value in vars(self).items():
            if not isinstance(value, bool) and value < 1:
                raise ConfigError(f"{key}={value} must be at least 1")
        if self.width % self.heads or self.heads % self.kv_heads:
            raise ConfigError(
                f"width={self.width}, heads={self.heads}, kv_heads={self.kv_heads}: heads must "
                "divide the width, and kv_heads the heads"
            )

    @classmethod
    def of(cls, network: Transformer, *, sequence: int, micro_batch: int) -> Shape:
        """The shape of a network as it is configured, and of one micro-batch."""
        return cls(
            layers=network.layers,
            width=network.width,
            heads=network.heads,
            kv_heads=network.kv_heads or network.heads,
            mlp_width=network.mlp_width or default_hidden(network.activation, network.width),
            gated=network.activation == "swiglu",
            rotary=network.positions == "rotary",
            vocab=network.padded_vocab_size,
            tied=network.tied,
            sequence=sequence,
            micro_batch=micro_batch,
        )

    @property
    def kv_width(self) -> int:
        """Features of all key heads, and of all value heads."""
        return self.width // self.heads * self.kv_heads

    @property
    def block_parameters(self) -> int:
        """Weights of the matrices of all blocks."""
        attention = 2 * self.width * (self.width + self.kv_width)
        mlp = (3 if self.gated else 2) * self.width * self.mlp_width
        return self.layers * (attention + mlp)

    @property
    def parameters(self) -> int:
        """Weights of all matrices; norms, biases and a table of positions are few."""
        return self.block_parameters + (1 if self.tied else 2) * self.vocab * self.width

    @property
    def tokens_per_step(self) -> int:
        """Of one optimizer step on one device."""
        return self.sequence * self.micro_batch * self.micro_batches


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


def roofline(shape: Shape, device: Device) -> Roofline:
    """The parts of a training step of ``shape`` on ``device``, in bf16."""
    peak_flops = device.peak_flops("bf16-mixed")

    def part(flops: float = 0, moved: float = 0, efficiency: float = MATMUL_EFFICIENCY) -> Part:
        seconds = flops / (efficiency * peak_flops)
        seconds += moved / (MEMORY_EFFICIENCY * device.bytes_per_second)
        return Part(flops=flops, bytes=moved, seconds=seconds)

    attention = 6 * shape.layers * shape.width * shape.sequence
    parts = {
        "blocks": part(6 * shape.block_parameters),
        "attention": part(attention, efficiency=ATTENTION_EFFICIENCY),
        "head and loss": part(6 * shape.vocab * shape.width, loss_bytes(shape)),
        "element-wise": part(moved=elementwise_bytes(shape)),
        "optimizer": part(moved=optimizer_bytes(shape) / shape.tokens_per_step),
    }
    return Roofline(parts=parts, peak_flops=peak_flops, tokens_per_step=shape.tokens_per_step)


def elementwise_bytes(shape: Shape) -> int:
    """Bytes that element-wise kernels read and write for one token, forward and backward.

    All in bf16, compiled: what lies between two matrix products is one kernel that reads each input
    and writes each output once. Elements read + written, per layer:

    - residual and norm, twice: forward 2 D + 2 D (reads stream and branch, writes both the new
      stream and its norm), backward 3 D + D (reads the stream and the gradients of norm and stream,
      writes the stream's): 16 D in all.
    - activation: forward M + M, backward 2 M + M (reads input and gradient); gated forward 2 M + M,
      backward 3 M + 2 M: 5 M, gated 8 M.
    - rotary positions on queries and keys: forward and backward each (D + K) + (D + K): 4 (D + K).

    Outside the layers 4 D + 5 D: embedding (reads a row, writes the stream; backward reads the
    gradient, and reads and writes a row of the weight's), and the last norm 2 D forward, 2 D
    backward. Dropout, biases and QK-norm are not counted.
    """
    layer = 16 * shape.width + (8 if shape.gated else 5) * shape.mlp_width
    if shape.rotary:
        layer += 4 * (shape.width + shape.kv_width)
    outside = 5 * shape.width + 4 * shape.width
    return _BF16 * (shape.layers * layer + outside)


def loss_bytes(shape: Shape) -> int:
    """Bytes that the loss reads and writes for one token, the head's products left out.

    One fused kernel over bf16 logits: reads them for the normaliser, reads them again for the
    gradient, writes the gradient in their place: 3 V elements.
    """
    return _BF16 * 3 * shape.vocab


def optimizer_bytes(shape: Shape) -> int:
    """Bytes that one AdamW step reads and writes, clipping included.

    Per parameter: weight, gradient and both moments read and written in fp32 (the gradient's write
    is its scaling by the clipped norm), and the bf16 copy of the weight written: 34 bytes. Divided
    by the tokens of a step, it is the price of a small batch.
    """
    return shape.parameters * (4 * 2 * _FP32 + _BF16)


def forward_elementwise_bytes(shape: Shape) -> int:
    """The part of ``elementwise_bytes`` that a block's forward moves, and a recomputed one again.

    Elements per layer: residual and norm twice 8 D, activation 2 M (gated 3 M), rotary 2 (D + K).
    """
    layer = 8 * shape.width + (3 if shape.gated else 2) * shape.mlp_width
    if shape.rotary:
        layer += 2 * (shape.width + shape.kv_width)
    return _BF16 * shape.layers * layer
