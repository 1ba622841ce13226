"""A second, deliberately naive implementation of the decoder, with loops and explicit formulas.

It shares no code with llm_train.model.network; it reads a state dict and the configuration's
values.
"""

import math

import torch
from torch import Tensor


def _norm(x: Tensor, p: dict[str, Tensor], name: str, kind: str, eps: float) -> Tensor:
    if kind == "none":
        return x
    if kind == "layernorm":
        mean = x.mean(-1, keepdim=True)
        variance = ((x - mean) ** 2).mean(-1, keepdim=True)
        out = (x - mean) / torch.sqrt(variance + eps) * p[f"{name}.weight"]
        return out + p[f"{name}.bias"] if f"{name}.bias" in p else out
    return x / torch.sqrt((x**2).mean(-1, keepdim=True) + eps) * p[f"{name}.weight"]


def _linear(x: Tensor, p: dict[str, Tensor], name: str) -> Tensor:
    out = x @ p[f"{name}.weight"].T
    return out + p[f"{name}.bias"] if f"{name}.bias" in p else out


def _yarn(i: int, head_dim: int, base: float, factor: float, length: int) -> float:
    """YaRN's frequency of pair i, as its authors' code has it, with 32 turns and 1."""

    def pair(turns: int) -> float:
        return head_dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = max(math.floor(pair(32)), 0), min(math.ceil(pair(1)), head_dim - 1)
    high += 0.001 if low == high else 0
    ramp = min(max((i - low) / (high - low), 0), 1)
    plain = 1 / base ** (2 * i / head_dim)
    return plain / factor * ramp + plain * (1 - ramp)


def _rotate(x: Tensor, base: float, yarn: tuple[float, int] | None) -> Tensor:
    """Multiplies features i and i + hd/2 of (B, T, hd), as a complex number, by exp(i t theta)."""
    half = x.shape[-1] // 2
    rows = []
    for t in range(x.shape[1]):
        columns = [torch.empty(0)] * (2 * half)
        for i in range(half):
            theta = _yarn(i, 2 * half, base, *yarn) if yarn else base ** (-i / half)
            scale = 0.1 * math.log(yarn[0]) + 1 if yarn else 1.0
            cos, sin = scale * math.cos(t * theta), scale * math.sin(t * theta)
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
            scaling = config.rotary_scaling
            yarn = (scaling.factor, scaling.original_length) if hasattr(scaling, "factor") else None
            q, k = (_rotate(each, config.rotary_base, yarn) for each in (q, k))
        scores = q @ k.transpose(1, 2) / math.sqrt(head_dim)  # (B, T, T)
        length = x.shape[1]
        if config.positions == "alibi":  # of a number of heads that is a power of two
            slope = 2 ** (-8 * (head + 1) / heads)
            scores = scores - slope * (torch.arange(length)[:, None] - torch.arange(length))
        future = torch.arange(length)[None, :] > torch.arange(length)[:, None]
        weights = torch.exp(scores - scores.max(-1, keepdim=True).values) * ~future
        results.append(weights / weights.sum(-1, keepdim=True) @ v)
    return _linear(torch.cat(results, -1), p, f"{name}.out")


def _sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def _normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(x / math.sqrt(2)))


ACTIVATIONS = {
    "sigmoid": _sigmoid,
    "tanh": lambda x: 2 * _sigmoid(2 * x) - 1,
    "relu": lambda x: torch.where(x > 0, x, 0),
    "leaky_relu": lambda x: torch.where(x > 0, x, 0.01 * x),
    "silu": lambda x: x * _sigmoid(x),
    "gelu": lambda x: x * _sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)),
    "gelu_erf": lambda x: x * _normal_cdf(x),
    "relu2": lambda x: torch.where(x > 0, x * x, 0),
}
GATED = {
    "glu": "sigmoid",
    "tanh_glu": "tanh",
    "reglu": "relu",
    "leaky_reglu": "leaky_relu",
    "swiglu": "silu",
    "geglu": "gelu",
    "geglu_erf": "gelu_erf",
    "reglu2": "relu2",
}


def _mlp(x: Tensor, p: dict[str, Tensor], name: str, config) -> Tensor:
    if config.activation in GATED:
        fused = _linear(x, p, f"{name}.gate_up")
        slab = math.gcd(fused.shape[-1] // 2, 64)
        slabs = fused.split(slab, dim=-1)
        gate, up = torch.cat(slabs[0::2], -1), torch.cat(slabs[1::2], -1)
        hidden = ACTIVATIONS[GATED[config.activation]](gate) * up
    else:
        hidden = ACTIVATIONS[config.activation](_linear(x, p, f"{name}.up"))
    return _linear(hidden, p, f"{name}.down")


def _layer(x: Tensor, p: dict[str, Tensor], layer: int, config) -> Tensor:
    alpha = (2 * config.layers) ** 0.25 if config.norm_placement == "deepnorm" else 1
    for half, run in (("attention", _attention), ("mlp", _mlp)):
        name = f"layers.{layer}.{half}"
        if config.norm_placement in ("post", "deepnorm"):
            x = alpha * x + run(x, p, name, config)
            x = _norm(x, p, f"{name}_norm", config.norm, config.norm_eps)
            continue
        y = run(_norm(x, p, f"{name}_norm", config.norm, config.norm_eps), p, name, config)
        if config.norm_placement in ("sandwich", "peri"):
            y = _norm(y, p, f"{name}_out_norm", config.norm, config.norm_eps)
        x = x + y
    return x


def plain_logits(p: dict[str, Tensor], tokens: Tensor, config) -> Tensor:
    """Maps (B, T) to (B, T, V) in the parameters' dtype, with the padding columns cut off."""
    x = p["embedding.weight"][tokens] * config.embedding_scale
    if config.positions == "learned":
        x = x + p["positions.weight"][: tokens.shape[1]]
    if config.positions == "sinusoidal":
        for t in range(tokens.shape[1]):
            for i in range(config.width):
                wave = math.cos if i % 2 else math.sin
                x[:, t, i] = x[:, t, i] + wave(t / 10_000 ** (i // 2 * 2 / config.width))
    if config.norm_placement == "peri":
        x = _norm(x, p, "embedding_norm", config.norm, config.norm_eps)
    for layer in range(config.layers):
        x = _layer(x, p, layer, config)
    if config.norm_placement not in ("post", "deepnorm"):
        x = _norm(x, p, "norm", config.norm, config.norm_eps)
    head = p["embedding.weight"] if config.tied else p["head.weight"]
    logits = x @ head[: config.vocab_size].T
    return config.soft_cap * torch.tanh(logits / config.soft_cap) if config.soft_cap else logits
