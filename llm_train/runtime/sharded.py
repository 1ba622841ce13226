"""Tensors that ranks share, asked about without importing torch's DTensor: that takes 0.6 s."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor
    from typing_extensions import TypeIs

T = TypeVar("T")


def of_all_ranks(value: T, group: dist.ProcessGroup | None = None) -> list[T]:
    """The value that every rank gives, in their order; collective over the ``group``, or all."""
    found = [value]
    if dist.is_initialized():
        found *= dist.get_world_size(group)
        dist.all_gather_object(found, value, group=group)
    return found


def is_dtensor(tensor: Tensor) -> TypeIs[DTensor]:
    """Whether ``tensor`` is this rank's part of a larger one, or a copy that other ranks share."""
    if type(tensor) in (Tensor, nn.Parameter):
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def local_part(tensor: Tensor) -> Tensor:
    """What this rank holds of ``tensor``."""
    return tensor.to_local() if is_dtensor(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of ``tensor``, gathered from the ranks that share it; collective over them."""
    return tensor.full_tensor() if is_dtensor(tensor) else tensor


def box_of(tensor: DTensor) -> tuple[Sequence[int], Sequence[int]]:
    """Shape of this rank's part, and its offset in every dimension."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    mesh, placements = tensor.device_mesh, tensor.placements
    return compute_local_shape_and_global_offset(tensor.shape, mesh, placements)


def own_part(full: Tensor, like: Tensor) -> Tensor:
    """This rank's part of ``full``, sharded as ``like`` is; a view, without communication.

    Not ``distribute_tensor``, which does not know a dimension that is cut twice, for tensor
    parallelism and by shards.
    """
    if not is_dtensor(like):
        return full
    shape, offset = box_of(like)
    return full[tuple(slice(o, o + n) for o, n in zip(offset, shape, strict=True))]


def pieces(tensor: Tensor) -> list[Tensor]:
    """The tensors that a sharded or quantized one is made of on this rank."""
    tensor = local_part(tensor)
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [piece for name in names for piece in pieces(getattr(tensor, name))]


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes of the memory that holds ``tensor`` on this rank.

    >>> import torch
    >>> tensor_bytes(torch.zeros(3, 5, dtype=torch.bfloat16))
    30
    """
    return sum(piece.numel() * piece.element_size() for piece in pieces(tensor))
