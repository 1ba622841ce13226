"""A second, deliberately naive implementation of the decoder, with loops and explicit formulas.

It shares no code with llm_train.model.network; it reads a state dict and the configuration's
values.
"""

import math

import torch
from torch import Tensor


def _norm(x: Tensor, p: dict[str, Tensor], name: str, kind: str, eps: float) -> Tensor:
    if kind == "layernorm":
        mean = x.mean(-1, keepdim=True)
        variance = ((x - mean) ** 2).mean(-1, keepdim=True)
        out = (x - mean) / torch.sqrt(variance + eps) * p[f"{name}.weight"]
        return out + p[f"{name}.bias"] if f"{name}.bias" in p else out
    return x / torch.sqrt((x**2).mean(-1, keepdim=True) + eps) * p[f"{name}.weight"]


def _linear(x: Tensor, p: dict[str, Tensor], name: str) -> Tensor:
    out = x @ p[f"{name}.weight"].T
    return out + p[f"{name}.bias"] if f"{name}.bias" in p else out


def _rotate(x: Tensor, base: float) -> Tensor:
    """Multiplies features i and i + hd/2 of (B, T, hd), as a complex number, by exp(i t theta)."""
    half = x.shape[-1] // 2
    rows = []
    for t in range(x.shape[1]):
        columns = [torch.empty(0)] * (2 * half)
        for i in range(half):
            angle = t * base ** (-2 * i / x.shape[-1])
            # the table under test is float32
            cos, sin = torch.tensor([math.cos(angle), math.sin(angle)]).double().tolist()
            columns[i] = x[:, t, i] * cos - x[:, t, i + half] * sin
            columns[i + half] = x[:, t, i + half] * cos + x[:, t, i] * sin
        rows.append(torch.stack(columns, -1))
    return torch.stack(rows, 1)


def _attention(x: Tensor, p: dict[str, Tensor], name: str, config) -> Tensor:
    heads, kv_heads = config.heads, config.kv_heads or config.heads
    head_dim, group = config.width // heads, heads // kv_heads
    fused = _linear(x, p, f"{name}.qkv")
    results = []
    for head in range(heads):
        first = (head // group) * (group + 2)  # position of this group's first query head

        def part(index: int) -> Tensor:
            return fused[..., index * head_dim : (index + 1) * head_dim]

        q, k, v = part(first + head % group), part(first + group), part(first + group + 1)
        if config.qk_norm:
            q = _norm(q, p, f"{name}.q_norm", "rmsnorm", config.norm_eps)
            k = _norm(k, p, f"{name}.k_norm", "rmsnorm", config.norm_eps)
        if config.positions == "rotary":
            q, k = _rotate(q, config.rotary_base), _rotate(k, config.rotary_base)
        scores = q @ k.transpose(1, 2) / math.sqrt(head_dim)  # (B, T, T)
        length = x.shape[1]
        future = torch.arange(length)[None, :] > torch.arange(length)[:, None]
        weights = torch.exp(scores - scores.max(-1, keepdim=True).values) * ~future
        results.append(weights / weights.sum(-1, keepdim=True) @ v)
    return _linear(torch.cat(results, -1), p, f"{name}.out")


def _mlp(x: Tensor, p: dict[str, Tensor], name: str, config) -> Tensor:
    if config.activation == "swiglu":
        fused = _linear(x, p, f"{name}.gate_up")
        slab = math.gcd(fused.shape[-1] // 2, 64)
        slabs = fused.split(slab, dim=-1)
        gate, up = torch.cat(slabs[0::2], -1), torch.cat(slabs[1::2], -1)
        hidden = gate / (1 + torch.exp(-gate)) * up
    else:
        up = _linear(x, p, f"{name}.up")
        if config.activation == "gelu":
            inner = math.sqrt(2 / math.pi) * (up + 0.044715 * up**3)
            hidden = 0.5 * up * (1 + torch.tanh(inner))
        elif config.activation == "gelu_erf":
            hidden = 0.5 * up * (1 + torch.erf(up / math.sqrt(2)))
        else:
            hidden = torch.where(up > 0, up * up, torch.zeros_like(up))
    return _linear(hidden, p, f"{name}.down")


def plain_logits(p: dict[str, Tensor], tokens: Tensor, config) -> Tensor:
    """Maps (B, T) to (B, T, V) in the parameters' dtype, with the padding columns cut off."""
    x = p["embedding.weight"][tokens]
    if config.positions == "learned":
        x = x + p["positions.weight"][: tokens.shape[1]]
    for layer in range(config.layers):
        name = f"layers.{layer}"
        y = _norm(x, p, f"{name}.attention_norm", config.norm, config.norm_eps)
        x = x + _attention(y, p, f"{name}.attention", config)
        y = _norm(x, p, f"{name}.mlp_norm", config.norm, config.norm_eps)
        x = x + _mlp(y, p, f"{name}.mlp", config)
    x = _norm(x, p, "norm", config.norm, config.norm_eps)
    head = p["embedding.weight"] if config.tied else p["head.weight"]
    logits = x @ head[: config.vocab_size].T
    return config.soft_cap * torch.tanh(logits / config.soft_cap) if config.soft_cap else logits
