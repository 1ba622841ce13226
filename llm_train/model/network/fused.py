"""Bytes that a compiled Transformer moves besides its products, by formula and for one token.

All in bf16, on one device: what lies between two matrix products is one kernel that reads each
input and writes each output once. D width, K key/value features, M hidden features of the
feed-forward part, V rows of the head.
"""

from typing import NamedTuple

from llm_train.model.network.architecture import Architecture

_BF16 = 2


class FusedBytes(NamedTuple):
    """Bytes that a micro-batch moves for one token (a target position).

    Attributes:
        elementwise: by element-wise kernels, forward and backward.
        blocks_forward: the part of it that the forward of the blocks moves, and a recomputed one
            again.
        loss: by the loss, the head's products left out.
    """

    elementwise: int
    blocks_forward: int
    loss: int


def fused_bytes(network: Architecture) -> FusedBytes:
    """Elements read + written, per layer.

    - Residual and norm, twice: forward 2 D + 2 D (reads stream and branch, writes both the new
      stream and its norm), backward 3 D + D (reads the stream and the gradients of norm and stream,
      writes the stream's): 8 D each way. A second norm of each branch adds 2 D + 2 D.
    - Activation: forward M + M, backward 2 M + M (reads input and gradient); gated forward 2 M + M,
      backward 3 M + 2 M.
    - Rotary positions on queries and keys: forward and backward each (D + K) + (D + K).
    - Gradients of query, key and value made one: backward 2 (D + 2 K).
    - Biases: backward reads the gradient of each product's output, D + 2 K, D, M or 2 M, and D.

    Outside the layers 4 D + 5 D: embedding (reads a row, writes the stream; backward reads the
    gradient, and reads and writes a row of the weight's), and the last norm 2 D forward, 2 D
    backward. The loss is one fused kernel over the logits: it reads them for the normaliser, reads
    them again for the gradient and writes the gradient in their place, 3 V. Dropout and QK-norm are
    not counted.
    """
    width, hidden = network.width, network.hidden
    kv_width = network.head_dim * network.key_value_heads
    forward, backward = (3, 5) if network.gated else (2, 3)
    each_way = 8 * width
    each_way += 4 * width if network.norm_placement in ("sandwich", "peri") else 0
    each_way += 2 * (width + kv_width) if network.positions == "rotary" else 0
    blocks_forward = network.layers * (each_way + forward * hidden)
    outputs = width + 2 * kv_width
    joined = 2 * outputs
    if network.bias:
        joined += outputs + 2 * width + (backward - forward) * hidden  # 2 M where it is gated
    blocks_backward = network.layers * (each_way + backward * hidden + joined)
    return FusedBytes(
        elementwise=_BF16 * (blocks_forward + blocks_backward + 9 * width),
        blocks_forward=_BF16 * blocks_forward,
        loss=_BF16 * 3 * network.padded_vocab_size,
    )
