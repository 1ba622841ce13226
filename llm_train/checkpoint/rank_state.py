"""What one rank writes of weights and optimizer state, and a copy that training cannot change.

The copy is what makes saving asynchronous: training stops while it is made, and goes on while it is
written. It lies in host memory that is taken once and kept from save to save, since taking pinned
memory costs more than filling it. Tensors that several ranks hold whole are shared out before they
are copied, so that the copies of all ranks together are one checkpoint (under HSDP one for each
group that holds a whole copy).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._pytree import tree_map

from llm_train.checkpoint.fragments import BoxedTensor
from llm_train.runtime.devices import KINDS
from llm_train.runtime.sharded import box_of, is_dtensor, tensor_bytes

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


@dataclass(frozen=True, kw_only=True)
class RankState:
    """What one rank writes.

    Attributes:
        tensors: by key; whole ones, or this rank's parts as a DTensor or boxes.
        scalars: by parameter, what is no tensor.
        own: begins the keys that are of no other rank; "" where all ranks have the same.
    """

    tensors: Mapping[str, Tensor]
    scalars: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    own: str = ""

    def shared_out(self) -> RankState:
        """The same without the whole tensors that other ranks write, which have them as well."""
        if not dist.is_initialized():
            return self
        loads = [0] * dist.get_world_size()
        found: dict[str, Tensor] = {}
        # By size, for an even share, and by key, for the same one on all ranks.
        ordered = sorted(self.tensors.items(), key=lambda item: (-item[1].numel(), item[0]))
        for key, tensor in ordered:
            parted = is_dtensor(tensor) or isinstance(tensor, BoxedTensor)
            if parted or (self.own and key.startswith(self.own)):
                found[key] = tensor
            else:
                rank = loads.index(min(loads))
                loads[rank] += tensor_bytes(tensor)
                if rank == dist.get_rank():
                    found[key] = tensor
        return replace(self, tensors=found)


class Snapshot:
    """Host memory for the copy of one checkpoint; each copy replaces the one before."""

    def __init__(self) -> None:
        self._memory: dict[object, Tensor] = {}
        self._copied: list[torch.Event] = []

    def of(self, place: str, state: RankState) -> RankState:
        """Copies a state; on a GPU the copying is only enqueued.

        Args:
            place: tells the states of one checkpoint apart.
            state: of this rank.
        """
        tensors = {key: self._boxed((place, key), t) for key, t in state.tensors.items()}
        for device in {tensor.device for tensor in state.tensors.values()}:
            if KINDS[device.type].pinned:
                event = torch.Event(device)
                event.record()  # what updates the weights next is enqueued behind it
                self._copied.append(event)
        return replace(state, tensors=tensors, scalars=copy.deepcopy(dict(state.scalars)))

    def wait(self) -> None:
        """Returns when the copies are complete; for the thread that reads them."""
        while self._copied:
            self._copied.pop().synchronize()

    def _boxed(self, key: object, tensor: Tensor) -> Tensor:
        parts: Mapping[torch.Size, Tensor]
        if isinstance(tensor, BoxedTensor):
            parts = tensor.parts
        elif is_dtensor(tensor):
            parts = _box(tensor)
        else:
            return self._copy(key, tensor)
        copies = {offsets: self._copy((key, offsets), part) for offsets, part in parts.items()}
        like = next(iter(copies.values()), torch.empty(0, dtype=tensor.dtype))
        return BoxedTensor(tensor.shape, copies, like)

    def _copy(self, key: object, tensor: Tensor) -> Tensor:
        memory, tensor = self._memory.get(key), tensor.detach()
        if memory is None or (memory.shape, memory.dtype) != (tensor.shape, tensor.dtype):
            pinned = KINDS[tensor.device.type].pinned
            memory = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
            self._memory[key] = memory
        return memory.copy_(tensor, non_blocking=True)


def copied(kept: dict[str, Any]) -> dict[str, Any]:
    """A copy, on the host, of plain values and tensors at any depth."""
    found: dict[str, Any] = tree_map(_copied, kept)
    return found


def _copied(leaf: object) -> object:
    if isinstance(leaf, Tensor):
        return leaf.detach().to("cpu", copy=True)
    with suppress(Exception):  # what cannot be copied cannot be saved, and whoever saves says so
        return copy.deepcopy(leaf)
    return leaf


def _box(tensor: DTensor) -> dict[torch.Size, Tensor]:
    """This rank's part by its offsets; empty where it has none."""
    local = tensor.to_local()
    return {torch.Size(box_of(tensor)[1]): local} if local.numel() else {}
