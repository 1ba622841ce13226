"""One layer of the network: the unit that is recomputed, compiled and sharded.

Nothing in ``forward`` depends on data or leaves the graph, so ``torch.compile(block,
fullgraph=True)`` works. All blocks of a network share code objects and shapes and compile once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from llm_train.model.network.architecture import Architecture
from llm_train.model.network.attention import Attention
from llm_train.model.network.cache import LayerCache
from llm_train.model.network.mlp import make_mlp
from llm_train.model.network.norm import make_norm
from llm_train.model.network.rotary import Rotary

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
