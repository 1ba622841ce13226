"""The rows of a fused parameter, taken apart and put together.

Queries, keys and values are one matrix, ordered by group (``attention.py``); gate and up projection
alternate in slabs (``mlp.py``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from llm_train.model.network.transformer import Transformer


def parts(network: Transformer, module: str, tensor: Tensor) -> list[Tensor]:
    """The matrices, or biases, that a fused parameter holds, each with its rows in order."""
    if module == "qkv":
        heads = _rows(tensor, network.key_value_heads, -1, network.head_dim)
        split = (heads[:, :-2], heads[:, -2:-1], heads[:, -1:])
        return [part.flatten(0, 2) for part in split]
    if module == "gate_up":
        return [part.flatten(0, 1) for part in _rows(tensor, -1, 2, network.slab).unbind(1)]
    return [tensor]


def whole(network: Transformer, module: str, parts: list[Tensor]) -> Tensor:
    """The inverse of ``parts``."""
    if module == "qkv":
        parts = list(parts[0].chunk(3)) if len(parts) == 1 else parts
        groups = [_rows(part, network.key_value_heads, -1, network.head_dim) for part in parts]
        return torch.cat(groups, dim=1).flatten(0, 2)
    if module == "gate_up":
        return torch.stack([_rows(part, -1, network.slab) for part in parts], 1).flatten(0, 2)
    return parts[0]


def _rows(tensor: Tensor, *sizes: int) -> Tensor:
    """The first dimension cut into several."""
    return tensor.reshape(*sizes, *tensor.shape[1:])
