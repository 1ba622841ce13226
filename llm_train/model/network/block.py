"""One layer of the network: the unit that is recomputed, compiled and sharded.

Nothing in ``forward`` depends on data or leaves the graph, so ``torch.compile(block,
fullgraph=True)`` works. All blocks of a network share code objects and shapes and compile once.
"""

from __future__ import annotations

from torch import Tensor, nn

from llm_train.model.network.architecture import Architecture
from llm_train.model.network.attention import Attention
from llm_train.model.network.cache import LayerCache
from llm_train.model.network.mlp import make_mlp
from llm_train.model.network.norm import make_norm
from llm_train.model.network.rotary import Rotary


class Block(nn.Module):
    """Pre-norm residual layer: ``x + attention(norm(x))``, then ``x + mlp(norm(x))``."""

    def __init__(self, config: Architecture) -> None:
        super().__init__()
        self.attention_norm = make_norm(config)
        self.attention = Attention(config)
        self.mlp_norm = make_norm(config)
        self.mlp = make_mlp(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, rotary: Rotary | None = None, cache: LayerCache | None = None
    ) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x = x + self.dropout(self.attention(self.attention_norm(x), rotary, cache))
        x = x + self.dropout(self.mlp(self.mlp_norm(x)))
        return x
