"""Causal attention with grouped queries, one fused projection, and torch's own SDPA kernel.

The rows of the fused weight are ordered by group: for each key/value head its query heads, then its
key, then its value. A contiguous slice of rows is therefore a number of whole groups, and tensor
parallelism can cut the weight into equal parts as it stands; with all queries first it could not.
The number of local heads is inferred from the projection's output, never taken from the
configuration.

Order of operations on queries and keys: project, QK-norm, rotate, store in the cache, attend.

Shapes: B batch, T positions, D width, H query heads, K key/value heads, G = H / K, hd head_dim.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional as F

from llm_train.model.network.architecture import Architecture
from llm_train.model.network.base import LayerCache, causal_mask
from llm_train.model.network.confined import attend
from llm_train.model.network.norm import RMSNorm
from llm_train.model.network.positions import Rotary
from llm_train.model.network.shadow import ShadowedLinear

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


class Attention(nn.Module):
    """Multi-head causal self-attention.

    State, in order: ``qkv.weight`` ((G + 2) * K * hd, D), ``qkv.bias``, ``out.weight`` (D, H * hd),
    ``out.bias``, ``q_norm.weight`` (hd), ``k_norm.weight`` (hd); biases and norms where configured.
    """

    def __init__(self, config: Architecture) -> None:
        super().__init__()
        self.heads = config.heads
        self.head_dim = config.head_dim
        kv_heads = config.key_value_heads
        self.group = config.heads // kv_heads
        self.dropout = config.dropout
        rows = (self.group + 2) * kv_heads * self.head_dim
        self.qkv = ShadowedLinear(config.width, rows, bias=config.bias)
        self.out = ShadowedLinear(config.width, config.width, bias=config.bias)
        # Over hd, with weights that the heads share (arXiv:2302.05442).
        hd, eps = self.head_dim, config.norm_eps
        self.q_norm = RMSNorm(hd, eps=eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(hd, eps=eps) if config.qk_norm else nn.Identity()

    def forward(
        self,
        x: Tensor,
        rotary: Rotary | None,
        cache: LayerCache | None,
        mask: Tensor | BlockMask | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """(B, T, D) -> (B, T, D); ``mask`` (B, H, T, S), or a part of it, is causal by itself."""
        # Neither heads nor positions are those of x when ranks share a layer.
        grouped = self.qkv(x).unflatten(-1, (-1, self.group + 2, self.head_dim))
        batch, new = grouped.shape[:2]
        q, k, v = grouped.split((self.group, 1, 1), dim=3)  # (B, T, K, G or 1, hd)
        q = self.q_norm(q.flatten(2, 3))  # (B, T, H, hd)
        k = self.k_norm(k.squeeze(3))  # (B, T, K, hd)
        v = v.squeeze(3)
        start = 0 if cache is None else cache.length
        if rotary is not None:
            q, k = rotary(q, start, positions), rotary(k, start, positions)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, H or K, T, hd)
        if cache is not None:
            k, v = cache.append(k, v)
        # With a filled cache the mask is aligned to the last key; SDPA's own aligns to the first.
        if mask is None and start > 0 and new > 1:
            mask = causal_mask(new, start + new, x.device)
        grouped = self.group > 1
        if mask is None or isinstance(mask, Tensor):
            causal = mask is None and start == 0
            p = self.dropout if self.training else 0.0
            y = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, dropout_p=p, is_causal=causal, enable_gqa=grouped
            )  # (B, H, T, hd)
        else:
            y = attend(q, k, v, mask, grouped=grouped)
        out: Tensor = self.out(y.transpose(1, 2).reshape(batch, new, -1))
        return out
