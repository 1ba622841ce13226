"""A decoder-only Pre-LN Transformer, from GPT-2 to Llama 3 by configuration.

What differs from the textbook:

- No weights are chosen here. ``Decoder.initial`` says which distribution each parameter starts from
  and ``llm_train.model.network.init`` samples it, so that weights do not depend on device,
  sharding or build order.
- There is no ``logits`` output: the head runs the loss (``head.py``).
- A tied head shares the embedding's ``Parameter``; ``Decoder._apply`` shares it again after moves
  that replace parameters (``to_empty`` from the meta device unties them without a word).
- Under mixed precision the residual stream is in the low precision too, not only the products:
  element-wise work is bound by memory, and half the bytes are half the time.
- Dropout acts on embeddings, attention weights and both residual branches, as in GPT-2.

Shapes: B batch, T positions, D width, V vocabulary (padded).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self, cast

import torch
from torch import Tensor, nn

from llm_train.errors import ConfigError
from llm_train.model.network.architecture import Architecture
from llm_train.model.network.base import ForwardFlops, Initial, Network, R, Readout
from llm_train.model.network.block import Block
from llm_train.model.network.cache import Cache, CachedLanguageModel, LayerCache
from llm_train.model.network.flops import attention_flops
from llm_train.model.network.fused import FusedBytes, fused_bytes
from llm_train.model.network.head import Head
from llm_train.model.network.norm import make_norm
from llm_train.model.network.rotary import Rotary
from llm_train.runtime.autocast import autocast_dtype

_ROLES = {
    "embedding": "embedding",
    "positions": "positions",
    "attention_norm": "norm",
    "qkv": "column",
    "q_norm": "head_norm",
    "k_norm": "head_norm",
    "out": "row",
    "mlp_norm": "norm",
    "up": "column",
    "gate_up": "column",
    "down": "row",
    "norm": "norm",
    "head": "head",
}


@dataclass(frozen=True, kw_only=True)
class Transformer(Architecture, Network):
    """Configuration of a decoder-only Transformer; the defaults are a small Llama, not GPT-2.

    Attributes:
        vocab_size: number of token ids.
        pad_vocab_to: the embedding and the head get rows up to the next multiple of this (64 or 128
            is faster on GPUs); the added rows are never predicted. 1 adds none.
        layers: number of blocks.
        width: features of the residual stream.
        heads: query heads; each has width / heads features.
        kv_heads: key/value heads, a divisor of heads (grouped-query attention); 0 means as many as
            heads.
        mlp_width: hidden features of the feed-forward part; 0 means 4 * width, or for swiglu
            8/3 * width rounded up to a multiple of 64.
        norm: layernorm (GPT-2) or rmsnorm (Llama).
        activation: gelu (tanh approximation, GPT-2), gelu_erf (exact, as nanoGPT and GPT-NeoX),
            swiglu (Llama) or relu2 (squared ReLU).
        positions: learned table (GPT-2) or rotary (Llama).
        rotary_base: wavelength base of rotary positions; 10000 in most networks, 500000 in Llama 3.
        max_sequence: longest sequence, and size of the position table.
        qk_norm: RMSNorm on queries and keys before they are rotated.
        soft_cap: c in c * tanh(logits / c); 0 means none.
        tied: whether the head uses the embedding's weight.
        bias: whether linear layers and LayerNorms have biases (GPT-2 does, Llama does not).
        dropout: probability on embeddings, attention weights and residual branches.
        residual_init: depth starts the last weight of each residual branch at init_std / sqrt(2 *
            layers) (GPT-2); zero starts it at 0, so that every block begins as the identity.
        init_std: standard deviation of embeddings and linear weights at the start.
        norm_eps: added to the variance in every norm.
    """

    @property
    def token_ids(self) -> int:
        """Number of token ids the network can read and predict (without padding)."""
        return self.vocab_size

    @property
    def max_positions(self) -> int:
        """Longest sequence the network accepts."""
        return self.max_sequence

    def fused_bytes(self) -> FusedBytes:
        """By formula."""
        return fused_bytes(self)

    def build(self) -> Decoder:
        """Constructs the module on torch's current default device, without choosing its weights."""
        return Decoder(self)


class Decoder(CachedLanguageModel):
    """The module that ``Transformer`` builds."""

    def __init__(self, config: Transformer) -> None:
        super().__init__()
        self.config = config
        self.max_positions = config.max_sequence
        rows, width = config.padded_vocab_size, config.width
        self.embedding = nn.Embedding(rows, width)
        learned = config.positions == "learned"
        self.positions = nn.Embedding(config.max_sequence, width) if learned else None
        base = config.rotary_base
        self.rotary = None if learned else Rotary(config.max_sequence, config.head_dim, base=base)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = make_norm(config)
        self.head = Head(width, rows, vocab_size=config.vocab_size, soft_cap=config.soft_cap)
        self._tie()

    def _tie(self) -> None:
        if self.config.tied:
            self.head.weight = cast(nn.Parameter, self.embedding.weight)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._tie()
        return self

    def blocks(self) -> Sequence[nn.Module]:
        """The repeated layers, in order."""
        return list(self.layers)

    def tensor_roles(self) -> Mapping[str, str]:
        """What each module is for, by its last name; modules without parameters have no role."""
        return {
            path: _ROLES[path.rpartition(".")[2]]
            for path, module in self.named_modules()
            if next(module.parameters(recurse=False), None) is not None
        }

    def forward_flops(self, sequence: int) -> ForwardFlops:
        """From the modules; torch's counter finds the same, but takes a second to import."""
        matrices = (m.weight for m in self.modules() if isinstance(m, nn.Linear | Head))
        shape = (self.config.layers * self.config.heads, sequence, self.config.head_dim)
        attention = attention_flops(shape, shape, shape)
        products = 2 * sequence * sum(matrix.numel() for matrix in matrices)
        return ForwardFlops(products, attention // 2, attention)

    def tensor_limits(self) -> Mapping[str, tuple[int, int]]:
        """Whole groups of heads, and whole slabs or features of the feed-forward part."""
        block = cast(Block, self.layers[0])
        mlp = block.mlp
        return {
            "model.network's kv_heads": (block.attention.heads // block.attention.group, 1),
            "model.network's mlp_width": (mlp.down.in_features, mlp.slab),
            **super().tensor_limits(),
        }

    def new_cache(self) -> Cache:
        """An empty cache of ``max_positions`` positions."""
        return [LayerCache(self.max_positions) for _ in range(self.config.layers)]

    def forward(self, tokens: Tensor, readout: Readout[R], cache: Cache | None = None) -> R:
        """(B, T) -> whatever ``readout`` returns; ``tokens`` follow what ``cache`` holds."""
        start = 0 if cache is None else cache[0].length
        end = start + tokens.shape[1]
        if end > self.max_positions:
            raise ConfigError(
                f"a sequence of {end} tokens is longer than max_sequence={self.max_positions}; "
                "shorten it or raise max_sequence"
            )
        x = self.embedding(tokens)  # (B, T, D)
        if self.positions is not None:
            x = x + self.positions(torch.arange(start, end, device=tokens.device))
        # The residual stream is in the dtype of products; norms compute in float32 by themselves.
        x = self.dropout(x.to(autocast_dtype(x)))
        for index, block in enumerate(self.layers):
            x = block(x, self.rotary, None if cache is None else cache[index])
        out: R = self.head(self.norm(x), readout)
        return out

    def initial(self, name: str) -> Initial:
        """The distribution that parameter ``name`` starts from; every name must match a rule."""
        config, (module, kind) = self.config, name.split(".")[-2:]
        if module not in _ROLES or kind not in ("weight", "bias"):
            raise KeyError(f"no initial distribution for parameter {name}")
        role = _ROLES[module]
        if kind == "bias":
            return Initial(0.0, 0.0)
        if role in ("norm", "head_norm"):
            return Initial(1.0, 0.0)
        if role in ("embedding", "head"):
            return Initial(0.0, config.init_std, rows=config.vocab_size)
        if role == "row":  # the last weight of a residual branch
            depth = config.init_std / math.sqrt(2 * config.layers)
            return Initial(0.0, depth if config.residual_init == "depth" else 0.0)
        return Initial(0.0, config.init_std)
