"""Bytes that a compiled Transformer moves besides its products, and what kernels attain of a peak.

The fractions are assumptions, taken from what public kernels reach at large shapes, and not
measured here. Bytes are counted for one token (a target position) and one device. D width, K
key/value features, M hidden features of the feed-forward part, V rows of the head, L layers.
"""

from __future__ import annotations

from llm_train.model.network import Transformer
from llm_train.model.network.mlp import default_hidden

ATTENTION_EFFICIENCY = 0.5
"""Of the dense peak, causal, forward and backward together: FlashAttention 3 and cuDNN."""

MEMORY_EFFICIENCY = 0.85
"""Of the memory's bandwidth: fused element-wise kernels on tensors of many megabytes."""

_BF16 = 2


def widths(network: Transformer) -> tuple[int, int, int]:
    """D, K and M of a network."""
    kv_width = network.width // network.heads * (network.kv_heads or network.heads)
    hidden = network.mlp_width or default_hidden(network.activation, network.width)
    return network.width, kv_width, hidden


def gated(network: Transformer) -> bool:
    """Whether the feed-forward part has a gate in addition to its input matrix."""
    return network.activation == "swiglu"


def elementwise_bytes(network: Transformer) -> int:
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
    width, kv_width, hidden = widths(network)
    layer = 16 * width + (8 if gated(network) else 5) * hidden
    if network.positions == "rotary":
        layer += 4 * (width + kv_width)
    outside = 5 * width + 4 * width
    return _BF16 * (network.layers * layer + outside)


def loss_bytes(network: Transformer) -> int:
    """Bytes that the loss reads and writes for one token, the head's products left out.

    One fused kernel over bf16 logits: reads them for the normaliser, reads them again for the
    gradient, writes the gradient in their place: 3 V elements.
    """
    return _BF16 * 3 * network.padded_vocab_size


def forward_elementwise_bytes(network: Transformer) -> int:
    """The part of ``elementwise_bytes`` that a block's forward moves, and a recomputed one again.

    Elements per layer: residual and norm twice 8 D, activation 2 M (gated 3 M), rotary 2 (D + K).
    """
    width, kv_width, hidden = widths(network)
    layer = 8 * width + (3 if gated(network) else 2) * hidden
    if network.positions == "rotary":
        layer += 2 * (width + kv_width)
    return _BF16 * network.layers * layer
