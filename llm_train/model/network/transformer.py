"""A decoder-only Transformer, from GPT-2 to Llama 3 by configuration.

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

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self, cast

import torch
from torch import Tensor, nn

from llm_train.context import Context
from llm_train.errors import ConfigError
from llm_train.model.network.architecture import Architecture
from llm_train.model.network.base import (
    Cache,
    CachedLanguageModel,
    ForwardFlops,
    Initial,
    LayerCache,
    Network,
    R,
    Readout,
)
from llm_train.model.network.block import Block
from llm_train.model.network.confined import Confinement, Masks
from llm_train.model.network.flops import attention_flops
from llm_train.model.network.fused import FusedBytes, fused_bytes
from llm_train.model.network.head import Head
from llm_train.model.network.initial_rules import check_patterns
from llm_train.model.network.initial_weights import initial_matrix, stuck
from llm_train.model.network.norm import make_norm
from llm_train.model.network.positions import Alibi, Rotary, Sinusoidal
from llm_train.runtime.autocast import autocast_dtype

_ROLES = {
    "embedding": "embedding",
    "embedding_norm": "norm",
    "positions": "positions",
    "attention_norm": "norm",
    "attention_out_norm": "norm",
    "qkv": "column",
    "q_norm": "head_norm",
    "k_norm": "head_norm",
    "out": "row",
    "mlp_norm": "norm",
    "mlp_out_norm": "norm",
    "up": "column",
    "gate_up": "column",
    "down": "row",
    "norm": "norm",
    "head": "head",
}
_MATRICES = ("embedding", "positions", "column", "row", "head")


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
        mlp_width: hidden features of the feed-forward part; 0 means 4 * width, or for gated units
            8/3 * width rounded up to a multiple of 64.
        norm: layernorm (GPT-2), rmsnorm (Llama) or none.
        norm_placement: pre normalises what enters attention and feed-forward part (GPT-2, Llama);
            post normalises the residual stream after each of them (the first Transformer); deepnorm
            is post with a stream multiplied by (2 * layers) ** 0.25 and initial weights to match;
            sandwich normalises what enters and what leaves them (Gemma 2); peri normalises the
            embeddings too.
        activation: sigmoid, tanh, relu, leaky_relu, silu, gelu (tanh approximation, GPT-2),
            gelu_erf (exact, as nanoGPT and GPT-NeoX) or relu2 (squared ReLU); or a gated unit with
            one of them: glu (sigmoid), tanh_glu, reglu, leaky_reglu, swiglu (silu, Llama), geglu,
            geglu_erf, reglu2.
        positions: learned table (GPT-2), rotary (Llama), sinusoidal (a fixed table), alibi (a bias
            on scores that falls with distance; no FlashAttention) or none (the causal mask alone
            tells positions apart).
        rotary_base: wavelength base of rotary positions; 10000 in most networks, 500000 in Llama 3.
        rotary_scaling: changes rotary frequencies for a context longer than that of an earlier
            training.
        max_sequence: longest sequence, and size of the position table.
        qk_norm: RMSNorm on queries and keys before they are rotated.
        soft_cap: c in c * tanh(logits / c); 0 means none.
        tied: whether the head uses the embedding's weight.
        bias: whether linear layers and LayerNorms have biases (GPT-2 does, Llama does not).
        dropout: probability on embeddings, attention weights and residual branches.
        embedding_scale: multiplies the embeddings; sqrt(width) in Gemma and in the first
            Transformer.
        residual_init: depth starts the last weight of each residual branch at init_std / sqrt(2 *
            layers) (GPT-2); zero starts it at 0, so that every block begins as the identity.
        init_std: standard deviation of embeddings and linear weights at the start.
        init: other rules for initial matrices, by a pattern of their names, such as
            layers.*.mlp.up.weight; the last one that fits holds: normal and truncated_normal (of
            init_std), lecun, xavier, he, orthogonal, scaled_residual (init_std / sqrt(2 * layers)),
            zero or deepnorm. A number after it multiplies the standard deviation, as in "he 0.5".
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

    def problems(self, context: Context) -> Iterator[str]:
        """Also positions that a rank cannot have which holds a part of the sequence or heads."""
        yield from super().problems(context)
        if context.strategy.tensor > 1 and self.positions in ("sinusoidal", "alibi"):
            yield (
                f"trainer.strategy: tensor={context.strategy.tensor} does not work with "
                f"model.network's positions={self.positions}; use rotary or learned, or tensor=1"
            )
        network = cast(Decoder, context.network)
        initial = {name: network.initial(name) for name, _ in network.named_parameters()}
        zero = {name for name, start in initial.items() if start.mean == start.std == 0}
        if pair := next(stuck(self, zero), None):
            yield (
                f"model.network starts {' and '.join(dict.fromkeys(pair))} at zero, so that no "
                "gradient ever gets there; give it another rule in model.network.init_args.init"
            )

    @property
    def document_masks(self) -> Masks:
        """FlexAttention has no dropout, and its kernels want 16 features a head."""
        plain = self.positions != "alibi" and self.dropout == 0.0
        return "blocks" if plain and self.head_dim >= 16 else "dense"

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
        peri = config.norm_placement == "peri"
        self.embedding_norm = make_norm(config) if peri else nn.Identity()
        length, kind = config.max_sequence, config.positions
        self.positions = nn.Embedding(length, width) if kind == "learned" else None
        self.sinusoidal = Sinusoidal(length, width) if kind == "sinusoidal" else None
        self.alibi = Alibi(config.heads) if kind == "alibi" else None
        self.rotary = (
            Rotary(length, config.head_dim, base=config.rotary_base, scaling=config.rotary_scaling)
            if kind == "rotary"
            else None
        )
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.Identity() if config.norms_stream else make_norm(config)
        self.head = Head(width, rows, vocab_size=config.vocab_size, soft_cap=config.soft_cap)
        self._tie()
        names = (name for name, _ in self.named_parameters() if name.endswith(".weight"))
        check_patterns(config.init, [name for name in names if _role(name) in _MATRICES])

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

    def forward(
        self,
        tokens: Tensor,
        readout: Readout[R],
        cache: Cache | None = None,
        documents: Confinement | None = None,
    ) -> R:
        """(B, T) -> whatever ``readout`` returns; ``tokens`` follow what ``cache`` holds."""
        start = 0 if cache is None else cache[0].length
        end = start + tokens.shape[1]
        if end > self.max_positions:
            raise ConfigError(
                f"a sequence of {end} tokens is longer than max_sequence={self.max_positions}; "
                "shorten it or raise max_sequence"
            )
        positions = None if documents is None else documents.positions
        mask = None if documents is None else documents.mask
        x = self._embed(tokens, slice(start, end) if positions is None else positions)
        if self.alibi is not None:
            mask = self.alibi(start, end, mask).to(x.dtype)
        for index, block in enumerate(self.layers):
            x = block(x, self.rotary, None if cache is None else cache[index], mask, positions)
        out: R = self.head(self.norm(x), readout)
        return out

    def _embed(self, tokens: Tensor, positions: slice | Tensor) -> Tensor:
        """(B, T) -> (B, T, D), the residual stream that enters the first block."""
        x: Tensor = self.embedding(tokens)
        if self.config.embedding_scale != 1.0:
            x = x * self.config.embedding_scale
        if self.positions is not None:
            rows = positions
            if isinstance(rows, slice):
                rows = torch.arange(rows.start, rows.stop, device=tokens.device)
            x = x + self.positions(rows)
        if self.sinusoidal is not None:
            x = x + self.sinusoidal(positions).to(x.dtype)
        # The residual stream is in the dtype of products; norms compute in float32 by themselves.
        x = self.dropout(self.embedding_norm(x.to(autocast_dtype(x))))
        return x

    def initial(self, name: str) -> Initial:
        """The distribution that parameter ``name`` starts from; every name must match a rule."""
        role, kind = _role(name), name.rpartition(".")[2]
        if not role or kind not in ("weight", "bias"):
            raise KeyError(f"no initial distribution for parameter {name}")
        if kind == "bias":
            return Initial(0.0, 0.0)
        if role not in _MATRICES:
            return Initial(1.0, 0.0)  # of a norm
        return initial_matrix(self.config, name, role)


def _role(name: str) -> str:
    """Of the module that has a parameter; "" if none is known."""
    return _ROLES.get(name.split(".")[-2], "")
