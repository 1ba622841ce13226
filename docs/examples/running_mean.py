"""A network: each position sees the mean of all positions before it.

What is unusual: there is no attention, and nothing else had to change. Recomputation, compilation,
sharding, counting and the loss work on ``blocks()``, ``initial()`` and the ``Head`` alone.

Shapes: B batch, T positions, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llm_train.errors import ConfigError
from llm_train.model.network import Initial, LanguageModel, Network, Readout
from llm_train.model.network.base import R
from llm_train.model.network.head import Head
from llm_train.model.network.norm import RMSNorm


@dataclass(frozen=True, kw_only=True)
class RunningMean(Network):
    """Configuration of the network.

    Attributes:
        vocab_size: number of token ids.
        layers: number of blocks.
        width: features of the residual stream.
        max_sequence: longest sequence.
    """

    vocab_size: int
    layers: int = 2
    width: int = 32
    max_sequence: int = 1024

    def __post_init__(self) -> None:
        for key in ("vocab_size", "layers", "width", "max_sequence"):
            if getattr(self, key) < 1:
                raise ConfigError(f"{key}={getattr(self, key)} must be at least 1")

    @property
    def token_ids(self) -> int:
        """As configured."""
        return self.vocab_size

    @property
    def max_positions(self) -> int:
        """As configured."""
        return self.max_sequence

    def build(self) -> LanguageModel:
        """Constructs the module without choosing its weights."""
        return RunningMeanModel(self)


class MeanBlock(nn.Module):
    """``x + out(silu(mix(mean of norm(x) so far)))``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = RMSNorm(width, eps=1e-5)
        self.mix = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        seen = torch.arange(1, x.shape[1] + 1, device=x.device)
        mean = self.norm(x).cumsum(dim=1) / seen[:, None]  # (B, T, D)
        update: Tensor = self.out(F.silu(self.mix(mean)))
        return x + update


class RunningMeanModel(LanguageModel):
    """The module that ``RunningMean`` builds."""

    def __init__(self, config: RunningMean) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(MeanBlock(config.width) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, eps=1e-5)
        self.head = Head(
            config.width, config.vocab_size, vocab_size=config.vocab_size, soft_cap=0.0
        )

    def blocks(self) -> Sequence[nn.Module]:
        """The repeated layers, in order."""
        return list(self.layers)

    def initial(self, name: str) -> Initial:
        """Ones for norms, small numbers for everything else."""
        return Initial(1.0, 0.0) if name.endswith("norm.weight") else Initial(0.0, 0.02)

    def forward(self, tokens: Tensor, readout: Readout[R]) -> R:
        """(B, T) -> whatever ``readout`` returns."""
        x = self.embedding(tokens)  # (B, T, D)
        for block in self.layers:
            x = block(x)
        result: R = self.head(self.norm(x), readout)
        return result
