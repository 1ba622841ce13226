"""The global norm of gradients, sharded or not, and clipping by it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def norm_of_norms(norms: Sequence[Tensor]) -> Tensor:
    """The norm of all gradients from the norm of each, on every rank; as torch's total norm."""
    return _whole(torch.linalg.vector_norm(torch.stack(list(norms)), 2.0))


def clip_by_norm(parameters: Sequence[Tensor], limit: float | None) -> Tensor:
    """The global norm of the gradients, which are then scaled down to ``limit`` if there is one."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = _whole(nn.utils.get_total_norm(gradients, foreach=True))
    if limit:
        nn.utils.clip_grads_with_norm_(parameters, limit, norm, foreach=True)
    return norm


def _whole(norm: Tensor) -> Tensor:
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
