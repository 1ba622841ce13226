"""Bytes of optimizer state: counted on tensors, and as the formulas of the configurations say.

A formula belongs to its optimizer (``Optimizer.state_bytes``); here they are summed over a network,
and turned into the usual figure of bytes per parameter. Tests compare them with the tensors that a
step really leaves behind.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor

STEP_BYTES = 4
"""Of the step counter that torch's and torchao's Adam keep beside each parameter, a float32."""


class CountsState(Protocol):
    """Anything that knows how much state a parameter has: every ``Optimizer``."""

    def state_bytes(self, name: str, parameter: Tensor) -> int:
        """Bytes of state of one parameter, or of this rank's part of it."""
        ...


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes of the memory that holds ``tensor`` on this rank.

    A DTensor is asked for its local part, a quantized tensor for the tensors it is made of.

    >>> tensor_bytes(torch.zeros(3, 5, dtype=torch.bfloat16))
    30
    """
    tensor = getattr(tensor, "_local_tensor", tensor)
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        return sum(tensor_bytes(getattr(tensor, name)) for name in names)
    return tensor.numel() * tensor.element_size()


def state_bytes(config: CountsState, named_parameters: Iterable[tuple[str, Tensor]]) -> int:
    """Bytes of optimizer state for all parameters, tied ones once, frozen ones not at all.

    Args:
        config: the optimizer's configuration.
        named_parameters: of the network, on any device, meta included; of DTensors, this rank's
            parts are counted.
    """
    trained = {id(p): (name, p) for name, p in named_parameters if p.requires_grad}
    return sum(config.state_bytes(name, p) for name, p in trained.values())


def bytes_per_parameter(
    config: CountsState, weight_dtype: torch.dtype, name: str = "layers.0.weight"
) -> float:
    """Bytes of optimizer state for each further number of a large matrix.

    What does not grow with the matrix (step counters, lookup tables) is left out; ``state_bytes``
    has it.

    Args:
        config: the optimizer's configuration.
        weight_dtype: of the weights that the optimizer updates, not of copies for products.
        name: of the matrix, since Muon treats those of layers and those of tables differently.
    """
    small, large = (
        torch.empty(rows, 1024, dtype=weight_dtype, device="meta") for rows in (1024, 2048)
    )
    more = config.state_bytes(name, large) - config.state_bytes(name, small)
    return more / (large.numel() - small.numel())
