"""One layer of the network: the unit that is recomputed, compiled and sharded.

Nothing in ``forward`` depends on data or leaves the graph, so ``torch.compile(block,
fullgraph=True)`` works. All blocks of a network share code objects and shapes and compile once.

The fused weight of a gated feed-forward part alternates slabs of gate rows and up rows, so that, as
in attention, a contiguous slice of rows is a smaller unit and tensor parallelism can cut it as it
stands. A slab has 64 rows (fewer if the hidden width is not a multiple of 64): long enough that
both halves are still read in runs.

Shapes: B batch, T positions, D width, M hidden width, S slab.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from llm_train.model.network.activations import elementwise
from llm_train.model.network.architecture import Architecture
from llm_train.model.network.attention import Attention
from llm_train.model.network.base import LayerCache
from llm_train.model.network.norm import make_norm
from llm_train.model.network.positions import Rotary
from llm_train.model.network.shadow import ShadowedLinear

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


class Block(nn.Module):
    """Attention, then the feed-forward part, each with a residual around it and norms.

    | ``norm_placement``     | each half, f being attention or the feed-forward part              |
    |------------------------|--------------------------------------------------------------------|
    | ``pre``                | ``x + f(norm(x))`` (GPT-2, Llama; Xiong et al., arXiv:2002.04745)  |
    | ``sandwich``, ``peri`` | ``x + norm(f(norm(x)))`` (CogView, arXiv:2105.13290; Gemma 2)      |
    | ``post``               | ``norm(x + f(x))`` (Vaswani et al., arXiv:1706.03762)              |
    | ``deepnorm``           | ``norm(alpha x + f(x))`` (Wang et al., arXiv:2203.00555)           |
    """

    def __init__(self, config: Architecture) -> None:
        super().__init__()
        self.attention_norm = make_norm(config)
        self.attention = Attention(config)
        self.mlp_norm = make_norm(config)
        self.mlp = make_mlp(config)
        both = config.norm_placement in ("sandwich", "peri")
        self.attention_out_norm = make_norm(config) if both else nn.Identity()
        self.mlp_out_norm = make_norm(config) if both else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        self.norms_stream = config.norms_stream
        self.alpha = config.deepnorm_alpha if config.norm_placement == "deepnorm" else 1.0

    def forward(
        self,
        x: Tensor,
        rotary: Rotary | None = None,
        cache: LayerCache | None = None,
        mask: Tensor | BlockMask | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """(B, T, D) -> (B, T, D); ``positions`` (B, T) are other ones than 0 .. T - 1."""
        if self.norms_stream:
            y = self.dropout(self.attention(x, rotary, cache, mask, positions))
            x = self.attention_norm(self.alpha * x + y)
            y = self.dropout(self.mlp(x))
            x = self.mlp_norm(self.alpha * x + y)
        else:
            y = self.attention(self.attention_norm(x), rotary, cache, mask, positions)
            x = x + self.dropout(self.attention_out_norm(y))
            y = self.mlp(self.mlp_norm(x))
            x = x + self.dropout(self.mlp_out_norm(y))
        return x


class PlainMLP(nn.Module):
    """``down(activation(up(x)))``."""

    slab = 1  # any feature may be cut from its neighbours

    def __init__(self, config: Architecture) -> None:
        super().__init__()
        self.activation = elementwise(config.activation)
        self.up = ShadowedLinear(config.width, config.hidden, bias=config.bias)
        self.down = ShadowedLinear(config.hidden, config.width, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        out: Tensor = self.down(self.activation(self.up(x)))
        return out


class GatedMLP(nn.Module):
    """``down(activation(gate(x)) * up(x))``, gate and up in one product."""

    def __init__(self, config: Architecture) -> None:
        super().__init__()
        self.activation = elementwise(config.activation)
        self.slab = config.slab
        self.gate_up = ShadowedLinear(config.width, 2 * config.hidden, bias=config.bias)
        self.down = ShadowedLinear(config.hidden, config.width, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        slabs = self.gate_up(x).unflatten(-1, (-1, 2, self.slab))  # (B, T, M / S, 2, S)
        gate, up = slabs.unbind(3)
        out: Tensor = self.down((self.activation(gate) * up).flatten(2))
        return out


def make_mlp(config: Architecture) -> PlainMLP | GatedMLP:
    """The feed-forward part that a configuration names."""
    return GatedMLP(config) if config.gated else PlainMLP(config)
