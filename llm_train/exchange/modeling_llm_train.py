"""A network of llm-train for transformers, whole in this file; it travels with the weights.

``AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)`` reads it. It has every
choice of the network that was trained, except dropout, and needs nothing but torch, numpy and
transformers. ``proof.json`` beside it says how far its logits are from those of the training code.

Shapes: B batch, T new positions, S all positions, D width, H heads, K key/value heads, hd D / H.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Cache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_outputs import CausalLMOutputWithPast

Turn = Callable[[Tensor], Tensor]


class LLMTrainConfig(PretrainedConfig):
    """Sizes and choices; what is not of transformers has the name that it has in llm-train."""

    model_type = "llm_train"


class LLMTrainNorm(nn.Module):
    """RMSNorm, LayerNorm or nothing; it computes in float32 at least."""

    def __init__(self, config: LLMTrainConfig, width: int, kind: str) -> None:
        super().__init__()
        self.kind, self.eps = kind, config.norm_eps
        self.weight = nn.Parameter(torch.ones(width)) if kind != "none" else None
        biased = kind == "layernorm" and config.bias
        self.bias = nn.Parameter(torch.zeros(width)) if biased else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        if self.weight is None:
            return x
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        weight = self.weight.to(wide.dtype)
        if self.kind == "rmsnorm":
            return F.rms_norm(wide, weight.shape, weight, self.eps).to(x.dtype)
        bias = None if self.bias is None else self.bias.to(wide.dtype)
        return F.layer_norm(wide, weight.shape, weight, bias, self.eps).to(x.dtype)


class LLMTrainAttention(nn.Module):
    """Rows of ``qkv`` are ordered by group: its query heads, its key, its value."""

    def __init__(self, config: LLMTrainConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, config.hidden_size // config.num_attention_heads
        self.group = config.num_attention_heads // config.num_key_value_heads
        rows = (config.num_attention_heads + 2 * config.num_key_value_heads) * self.head_dim
        self.qkv = nn.Linear(config.hidden_size, rows, bias=config.bias)
        self.out = nn.Linear(config.hidden_size, config.hidden_size, bias=config.bias)
        kind = "rmsnorm" if config.qk_norm else "none"
        self.q_norm, self.k_norm = (LLMTrainNorm(config, self.head_dim, kind) for _ in range(2))

    def forward(self, x: Tensor, turn: Turn, mask: Tensor, past: Cache | None) -> Tensor:
        """(B, T, D) -> (B, T, D); ``turn`` gives heads their positions, ``past`` is a cache."""
        grouped = self.qkv(x).unflatten(-1, (-1, self.group + 2, self.head_dim))
        q, k, v = grouped.split((self.group, 1, 1), dim=3)
        q, k = self.q_norm(q.flatten(2, 3)), self.k_norm(k.squeeze(3))
        q, k, v = (part.transpose(1, 2) for part in (turn(q), turn(k), v.squeeze(3)))
        if past is not None:
            k, v = past.update(k, v, self.layer)
        k, v = (part.repeat_interleave(self.group, dim=1) for part in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(y.transpose(1, 2).flatten(2))


class LLMTrainMLP(nn.Module):
    """Rows of ``gate_up`` alternate in slabs of gate and of up."""

    def __init__(self, config: LLMTrainConfig) -> None:
        super().__init__()
        self.activation, self.slab = ACT2FN[config.hidden_act], config.slab
        if self.slab:
            self.gate_up = nn.Linear(
                config.hidden_size, 2 * config.intermediate_size, bias=config.bias
            )
        else:
            self.up = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.bias)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        if not self.slab:
            return self.down(self.activation(self.up(x)))
        gate, up = self.gate_up(x).unflatten(-1, (-1, 2, self.slab)).unbind(-2)
        return self.down((self.activation(gate) * up).flatten(-2))


class LLMTrainBlock(nn.Module):
    """Norms before, after, or before and after each half."""

    def __init__(self, config: LLMTrainConfig, layer: int) -> None:
        super().__init__()
        self.stream, self.scale = config.norms_stream, config.stream_scale
        outer = config.norm if config.norm_placement in ("sandwich", "peri") else "none"
        norms = (config.norm, config.norm, outer, outer)
        self.attention_norm, self.mlp_norm, self.attention_out_norm, self.mlp_out_norm = (
            LLMTrainNorm(config, config.hidden_size, kind) for kind in norms
        )
        self.attention, self.mlp = LLMTrainAttention(config, layer), LLMTrainMLP(config)

    def forward(self, x: Tensor, turn: Turn, mask: Tensor, past: Cache | None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        if self.stream:
            x = self.attention_norm(self.scale * x + self.attention(x, turn, mask, past))
            return self.mlp_norm(self.scale * x + self.mlp(x))
        y = self.attention(self.attention_norm(x), turn, mask, past)
        x = x + self.attention_out_norm(y)
        return x + self.mlp_out_norm(self.mlp(self.mlp_norm(x)))


class LLMTrainForCausalLM(PreTrainedModel, GenerationMixin):
    """A decoder-only Transformer with a head."""

    config_class = LLMTrainConfig
    _tied_weights_keys: ClassVar = {"head.weight": "embedding.weight"}
    _supports_sdpa = True

    def __init__(self, config: LLMTrainConfig) -> None:
        super().__init__(config)
        width, norm = config.hidden_size, config.norm
        self.embedding = nn.Embedding(config.vocab_size, width)
        self.embedding_norm = LLMTrainNorm(
            config, width, norm if config.norm_placement == "peri" else "none"
        )
        learned = config.positions == "learned"
        self.positions = nn.Embedding(config.max_position_embeddings, width) if learned else None
        self.layers = nn.ModuleList(
            LLMTrainBlock(config, layer) for layer in range(config.num_hidden_layers)
        )
        self.norm = LLMTrainNorm(config, width, "none" if config.norms_stream else norm)
        self.head = nn.Linear(width, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """For transformers, which ties it."""
        return self.embedding

    def get_output_embeddings(self) -> nn.Module:
        """For transformers, which ties it."""
        return self.head

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """(B, T) token ids -> logits (B, T, V), and the mean loss where there are labels (B, T)."""
        config, new = self.config, input_ids.shape[1]
        start = past_key_values.get_seq_length() if past_key_values is not None else 0
        places = torch.arange(start + new, device=input_ids.device)
        distance = places[start:, None] - places  # (T, S)
        seen, positions = (distance >= 0)[None], places[None, start:]
        if attention_mask is not None:  # padding; a place sees itself, or nothing would be left
            given = attention_mask.bool()
            seen = seen & (given[:, None] | (distance == 0))
            positions = (given.long().cumsum(-1) - 1).clamp(min=0)[:, start:]
        x = self.embedding(input_ids) * config.embedding_scale
        if self.positions is not None:
            x = x + self.positions(positions)
        angles = None
        if config.frequencies:
            angles = positions.double()[..., None] * positions.new_tensor(
                config.frequencies, dtype=torch.float64
            )
        if config.positions == "sinusoidal":
            pairs = torch.stack((angles.sin(), angles.cos()), -1).flatten(-2)
            x = x + pairs[..., : config.hidden_size].float().to(x.dtype)
        mask = seen[:, None]  # (B or 1, 1, T, S)
        if config.positions == "alibi":
            slopes = torch.tensor(config.slopes, device=x.device)[:, None, None]
            mask = (-slopes * distance).masked_fill(~mask, -math.inf).to(x.dtype)
        turn = partial(rotated, angles=angles, factor=config.rotary_factor)
        x = self.embedding_norm(x)
        for block in self.layers:
            turns = turn if config.positions == "rotary" else nn.Identity()
            x = block(x, turns, mask, past_key_values)
        logits = self.head(self.norm(x)).float()
        if config.soft_cap:
            logits = config.soft_cap * torch.tanh(logits / config.soft_cap)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=config.vocab_size)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)


def rotated(x: Tensor, angles: Tensor, factor: float) -> Tensor:
    """(B, T, H, hd), each pair (i, i + hd / 2) turned by its angle (B or 1, T, hd / 2)."""
    cos, sin = ((f(angles) * factor).float().unsqueeze(-2) for f in (torch.cos, torch.sin))
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x.dtype)
