"""The feed-forward half of a block: plain, or gated with one fused projection.

The fused weight of a gated unit alternates slabs of gate rows and up rows, so that, as in
attention, a contiguous slice of rows is a smaller unit and tensor parallelism can cut it as it
stands. A slab has 64 rows (fewer if the hidden width is not a multiple of 64): long enough that
both halves are still read in runs.

Shapes: B batch, T positions, D width, M hidden width, S slab.
"""

from __future__ import annotations

from torch import Tensor, nn

from llm_train.model.network.activations import elementwise
from llm_train.model.network.architecture import Architecture
from llm_train.model.network.shadow import ShadowedLinear


class PlainMLP(nn.Module):
    """``down(activation(up(x)))``."""

    slab = 1  # any feature may be cut from its neighbours

    def __init__(self, config: Architecture) -> None:
        super().__init__()
        self.activation = elementwise(config.activation)
        self.up = ShadowedLinear(config.width, config.hidden, bias=config.bias)
        self.down = ShadowedLinear(config.hidden, config.width, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        out: Tensor = self.down(self.activation(self.up(x)))
        return out


class GatedMLP(nn.Module):
    """``down(activation(gate(x)) * up(x))``, gate and up in one product."""

    def __init__(self, config: Architecture) -> None:
        super().__init__()
        self.activation = elementwise(config.activation)
        self.slab = config.slab
        self.gate_up = ShadowedLinear(config.width, 2 * config.hidden, bias=config.bias)
        self.down = ShadowedLinear(config.hidden, config.width, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        slabs = self.gate_up(x).unflatten(-1, (-1, 2, self.slab))  # (B, T, M / S, 2, S)
        gate, up = slabs.unbind(3)
        out: Tensor = self.down((self.activation(gate) * up).flatten(2))
        return out


def make_mlp(config: Architecture) -> PlainMLP | GatedMLP:
    """The feed-forward part that a configuration names."""
    return GatedMLP(config) if config.gated else PlainMLP(config)
