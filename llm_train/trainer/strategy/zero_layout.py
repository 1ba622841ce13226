"""Where DeepSpeed's ZeRO optimizers keep a rank's part of each parameter.

DeepSpeed lays the parameters of a group end to end, cuts the result into equal partitions, one a
rank, and gives torch's optimizer that one flat tensor of fp32 masters. (Stage 3 cuts each parameter
first and lays the cuts end to end.) So a rank's part of a parameter is consecutive both in the flat
tensor and in the parameter. Attributes with an underscore are DeepSpeed's; a test names them all.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llm_train.checkpoint.fragments import BoxedTensor, flat_fragment


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

    def fragment(self, flat: Tensor) -> BoxedTensor:
        """The part, in ``flat`` or in a tensor of moments alongside it."""
        return flat_fragment(self.shape, self.offset, flat[self.start : self.start + self.count])


class Holder:
    """DeepSpeed's optimizer, asked for its flat tensors.

    Of stages 1 and 2: one flat tensor a group, whose partitions cut parameters anywhere.

    Args:
        zero: DeepSpeed's optimizer; its ``optimizer`` is torch's.

    Attributes:
        flats: fp32 masters, one tensor a group.
        members: of each flat tensor, its parameters and where they lie.
    """

    _flats, _groups = "single_partition_of_fp32_groups", "bit16_groups"

    def __init__(self, zero: Any) -> None:
        self.zero = zero
        self.flats: list[Tensor] = getattr(zero, self._flats)
        self.members: list[dict[nn.Parameter, ShardOffset]] = [
            {parameter: self._place(parameter) for parameter in group}
            for group in getattr(zero, self._groups)
        ]

    def _place(self, parameter: Any) -> ShardOffset:
        mapping = parameter._hp_mapping
        if mapping is None:
            return ShardOffset(parameter.shape, 0, 0, 0)
        master, low = mapping.hp_fragment_address, mapping.lp_fragment_address
        return ShardOffset(parameter.shape, low.start, master.start, master.numel)

    def group_of(self, index: int) -> int:
        """Number of the parameter group that a flat tensor belongs to."""
        return index

    def frozen(self, parameter: nn.Parameter) -> Tensor:
        """A parameter that no optimizer updates; every rank has it."""
        return parameter.detach()

    def changed(self, index: int) -> None:
        """Told when a flat tensor was written."""

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Context in which masters are written; casts and gathers the parameters afterwards."""
        yield
        self.zero.update_lp_params()


class Partitioned(Holder):
    """Stage 3: parameters are cut one by one."""

    _flats, _groups = "fp32_partitioned_groups_flat", "fp16_groups"

    def _place(self, parameter: Any) -> ShardOffset:
        _, start, padded = self.zero.grad_position[self.zero.get_param_id(parameter)]
        return _cut(parameter, start, padded)

    def group_of(self, index: int) -> int:
        """A group may have several flat tensors."""
        return int(self.zero.sub_group_to_group_id[index])

    def changed(self, index: int) -> None:
        """Casts the parameters."""
        self.zero._reassign_or_swap_out_partitioned_parameters(index)

    def frozen(self, parameter: Any) -> Tensor:
        """This rank's cut."""
        return _cut(parameter, 0, parameter.ds_tensor.ds_numel).fragment(parameter.ds_tensor)

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Frees whole parameters, which would outlive the change; gathers the small ones again."""
        self.zero.checkpoint_event_prologue()
        yield
        self.zero.checkpoint_event_epilogue()


def _cut(parameter: Any, start: int, padded: int) -> ShardOffset:
    """This rank's part where each rank has ``padded`` elements, and the last ones have fewer."""
    rank = torch.distributed.get_rank(parameter.ds_process_group)
    offset = min(parameter.ds_numel, padded * rank)
    count = min(padded, parameter.ds_numel - offset)
    return ShardOffset(parameter.ds_shape, offset, start, count)
