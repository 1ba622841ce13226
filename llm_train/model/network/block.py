"""One layer of the network: the unit that is recomputed, compiled and sharded.

Nothing in ``forward`` depends on data or leaves the graph, so ``torch.compile(block,
fullgraph=True)`` works. All blocks of a network share code objects and shapes and compile once.
"""

from __future__ import annotations

from torch import Tensor, nn

from llm_train.model.network.attention import Attention
from llm_train.model.network.cache import LayerCache
from llm_train.model.network.rotary import Rotary


class Block(nn.Module):
    """Pre-norm residual layer: ``x + attention(norm(x))``, then ``x + mlp(norm(x))``."""

    def __init__(
        self,
        attention_norm: nn.Module,
        attention: Attention,
        mlp_norm: nn.Module,
        mlp: nn.Module,
        *,
        dropout: float,
    ) -> None:
        super().__init__()
        self.attention_norm = attention_norm
        self.attention = attention
        self.mlp_norm = mlp_norm
        self.mlp = mlp
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, rotary: Rotary | None = None, cache: LayerCache | None = None
    ) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x = x + self.dropout(self.attention(self.attention_norm(x), rotary, cache))
        x = x + self.dropout(self.mlp(self.mlp_norm(x)))
        return x
