"""The feed-forward half of a block: GELU, squared ReLU, or SwiGLU with one fused projection.

The fused SwiGLU weight alternates slabs of gate rows and up rows, so that, as in attention, a
contiguous slice of rows is a smaller SwiGLU and tensor parallelism can cut it as it stands. A slab
has 64 rows (fewer if the hidden width is not a multiple of 64): long enough that both halves are
still read in runs.

Shapes: B batch, T positions, D width, M hidden width, S slab.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from llm_train.model.network.architecture import Activation, Architecture
from llm_train.model.network.shadow import ShadowedLinear

_SLAB = 64


def gelu(x: Tensor) -> Tensor:
    """GELU by its tanh approximation, the one GPT-2 was trained with (arXiv:1606.08415)."""
    return F.gelu(x, approximate="tanh")


def relu2(x: Tensor) -> Tensor:
    """``max(x, 0) ** 2`` (Primer, arXiv:2109.08668)."""
    return F.relu(x).square()


_ELEMENTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": gelu,
    "gelu_erf": F.gelu,
    "relu2": relu2,
}


class PlainMLP(nn.Module):
    """``down(activation(up(x)))``."""

    slab = 1  # any feature may be cut from its neighbours

    def __init__(self, width: int, hidden: int, activation: Activation, *, bias: bool) -> None:
        super().__init__()
        self.activation = _ELEMENTWISE[activation]
        self.up = ShadowedLinear(width, hidden, bias=bias)
        self.down = ShadowedLinear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        out: Tensor = self.down(self.activation(self.up(x)))
        return out


class GatedMLP(nn.Module):
    """``down(silu(gate(x)) * up(x))`` (SwiGLU, arXiv:2002.05202), gate and up in one product."""

    def __init__(self, width: int, hidden: int, *, bias: bool) -> None:
        super().__init__()
        self.slab = math.gcd(hidden, _SLAB)
        self.gate_up = ShadowedLinear(width, 2 * hidden, bias=bias)
        self.down = ShadowedLinear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        slabs = self.gate_up(x).unflatten(-1, (-1, 2, self.slab))  # (B, T, M / S, 2, S)
        gate, up = slabs.unbind(3)
        out: Tensor = self.down((F.silu(gate) * up).flatten(2))
        return out


def make_mlp(config: Architecture) -> PlainMLP | GatedMLP:
    """The feed-forward part that a configuration names."""
    if config.activation == "swiglu":
        return GatedMLP(config.width, config.hidden, bias=config.bias)
    return PlainMLP(config.width, config.hidden, config.activation, bias=config.bias)
