"""Element-wise functions of the feed-forward part, and the gated units that are made of them.

A gated unit multiplies a second projection by ``f(gate)`` (Shazeer, arXiv:2002.05202).
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

# fmt: off
Activation = Literal[
    "sigmoid", "tanh", "relu", "leaky_relu", "silu", "gelu", "gelu_erf", "relu2",
    "glu", "tanh_glu", "reglu", "leaky_reglu", "swiglu", "geglu", "geglu_erf", "reglu2",
]
# fmt: on


def gelu(x: Tensor) -> Tensor:
    """GELU by its tanh approximation, the one GPT-2 was trained with (arXiv:1606.08415)."""
    return F.gelu(x, approximate="tanh")


def relu2(x: Tensor) -> Tensor:
    """``max(x, 0) ** 2`` (Primer, arXiv:2109.08668)."""
    return F.relu(x).square()


_PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,  # max(x, 0) + 0.01 min(x, 0) (Maas et al. 2013)
    "silu": F.silu,
    "gelu": gelu,
    "gelu_erf": F.gelu,
    "relu2": relu2,
}
_GATES = {
    "glu": "sigmoid",  # Dauphin et al., arXiv:1612.08083
    "tanh_glu": "tanh",
    "reglu": "relu",
    "leaky_reglu": "leaky_relu",
    "swiglu": "silu",
    "geglu": "gelu",
    "geglu_erf": "gelu_erf",
    "reglu2": "relu2",
}


def is_gated(name: Activation) -> bool:
    """Whether a unit has two projections."""
    return name in _GATES


def elementwise(name: Activation) -> Callable[[Tensor], Tensor]:
    """The function that a plain unit applies, or a gated one to its gate."""
    return _PLAIN[_GATES.get(name, name)]
