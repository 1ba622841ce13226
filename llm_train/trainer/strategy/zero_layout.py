"""Where DeepSpeed's ZeRO optimizers keep a rank's part of each parameter.

DeepSpeed lays the parameters of a group end to end, cuts the result into equal partitions, one a
rank, and gives torch's optimizer that one flat tensor of fp32 masters. (Stage 3 cuts each parameter
first and lays the cuts end to end.) So a rank's part of a parameter is consecutive both in the flat
tensor and in the parameter. Attributes with an underscore are DeepSpeed's; a test names them all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llm_train.checkpoint.fragments import FlatFragment


@dataclass(frozen=True)
class ShardOffset:
    """Where this rank's part of one parameter lies.

    Attributes:
        shape: of the whole parameter.
        offset: of the part in the parameter, in elements.
        start: of the part in the flat tensor, in elements.
        count: elements; 0 where this rank has no part.
    """

    shape: torch.Size
    offset: int
    start: int
    count: int

    def fragment(self, flat: Tensor) -> FlatFragment:
        """The part, in ``flat`` or in a tensor of moments alongside it."""
        return FlatFragment(self.shape, self.offset, flat[self.start : self.start + self.count])


class Holder(ABC):
    """DeepSpeed's optimizer, asked for its flat tensors.

    Attributes:
        zero: DeepSpeed's optimizer; its ``optimizer`` is torch's.
        flats: fp32 masters, one tensor a group.
        members: of each flat tensor, its parameters and where they lie.
    """

    zero: Any
    flats: list[Tensor]
    members: list[dict[nn.Parameter, ShardOffset]]

    @abstractmethod
    def settings(self, index: int) -> Mapping[str, Any]:
        """The parameter group of a flat tensor."""

    @abstractmethod
    def frozen(self, parameter: nn.Parameter) -> Tensor | FlatFragment:
        """A parameter that no optimizer updates."""

    @contextmanager
    def resident(self, index: int, *, changes: bool) -> Iterator[bool]:
        """Context in which a flat tensor and its state are in memory; True if only there."""
        yield False

    @abstractmethod
    def changing(self) -> AbstractContextManager[None]:
        """Context in which masters are written; parameters are casts of them afterwards."""


class Replicated(Holder):
    """Stages 1 and 2: one flat tensor a group, whose partitions cut parameters anywhere."""

    def __init__(self, zero: Any) -> None:
        self.zero = zero
        self.flats = zero.single_partition_of_fp32_groups
        self.members = [{p: self._place(p) for p in group} for group in zero.bit16_groups]

    @staticmethod
    def _place(parameter: Any) -> ShardOffset:
        mapping = parameter._hp_mapping
        if mapping is None:
            return ShardOffset(parameter.shape, 0, 0, 0)
        master, low = mapping.hp_fragment_address, mapping.lp_fragment_address
        return ShardOffset(parameter.shape, low.start, master.start, master.numel)

    def settings(self, index: int) -> Mapping[str, Any]:
        """The parameter group of a flat tensor."""
        group: Mapping[str, Any] = self.zero.optimizer.param_groups[index]
        return group

    def frozen(self, parameter: nn.Parameter) -> Tensor | FlatFragment:
        """Every rank has it."""
        return parameter.detach()

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Casts the masters and gathers the parameters afterwards."""
        yield
        self.zero.update_lp_params()


class Partitioned(Holder):
    """Stage 3: parameters are cut one by one, and may lie on an NVMe device."""

    def __init__(self, zero: Any) -> None:
        self.zero = zero
        self.flats = zero.fp32_partitioned_groups_flat
        self.members = [{p: self._place(p) for p in group} for group in zero.fp16_groups]

    def _place(self, parameter: Any) -> ShardOffset:
        _, start, padded = self.zero.grad_position[self.zero.get_param_id(parameter)]
        offset = min(parameter.ds_numel, padded * _rank(parameter))
        return ShardOffset(
            parameter.ds_shape, offset, start, min(padded, parameter.ds_numel - offset)
        )

    def settings(self, index: int) -> Mapping[str, Any]:
        """The parameter group of a flat tensor."""
        number = self.zero.sub_group_to_group_id[index]
        group: Mapping[str, Any] = self.zero.optimizer.param_groups[number]
        return group

    @contextmanager
    def resident(self, index: int, *, changes: bool) -> Iterator[bool]:
        """Reads what lies on an NVMe device; casts what changed and writes it back."""
        zero, swapped = self.zero, self.zero._swappable_optimizer_subgroup(index)
        if swapped:
            zero._optimizer_states_and_gradient_swap_in(index)
        yield swapped
        if changes:
            zero._reassign_or_swap_out_partitioned_parameters(index)
        if swapped and changes:
            zero._optimizer_states_and_gradient_swap_out(index)
        elif swapped:
            zero._release_swap_buffers(index)

    def frozen(self, parameter: Any) -> Tensor | FlatFragment:
        """This rank's cut."""
        padded = parameter.ds_tensor.ds_numel
        offset = min(parameter.ds_numel, padded * _rank(parameter))
        count = min(padded, parameter.ds_numel - offset)
        return FlatFragment(parameter.ds_shape, offset, parameter.ds_tensor[:count])

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Frees whole parameters, which would outlive the change; gathers the small ones again."""
        self.zero.checkpoint_event_prologue()
        yield
        self.zero.checkpoint_event_epilogue()


def _rank(parameter: Any) -> int:
    return torch.distributed.get_rank(parameter.ds_process_group)
