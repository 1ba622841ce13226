"""Optimizer state in 8 bits, in blocks that do not depend on how weights are sharded.

What is unusual: torchao cuts each rank's part of a parameter into blocks of 256 numbers wherever
they fall, and quantizes a part or not by its size, so that files could not move between shardings.
Here a block never crosses a row of the whole matrix, and whether a matrix is quantized depends on
its rows alone: one process and a thousand ranks hold the same codes and scales::

    matrix (R, C), block B = the largest power of two that divides C, from 64 to 256
    codes  (R, C) bytes                stored as NAME_codes_8bit
    scale  (R, C / B) float32          stored as NAME_scale

Both are sharded as the matrix is. Vectors, and matrices whose rows no such B divides, keep state in
their own dtype. torchao's codes and its update (``single_param_adam``) are used as they are.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from llm_train.runtime.sharded import is_dtensor, local_part

_LARGEST_BLOCK = 256
_SMALLEST_BLOCK = 64  # below it the scales would weigh more than a sixteenth of the codes
TABLE_BYTES = 4 * 256  # the float32 values that codes stand for, kept with each state


def block_size(parameter: Tensor) -> int:
    """Numbers that share a scale; 0 where the state of ``parameter`` is not quantized."""
    if parameter.ndim != 2:
        return 0
    columns, rest = divmod(parameter.shape[1], _parts(parameter))
    block = min(columns & -columns, _LARGEST_BLOCK)
    return block if block >= _SMALLEST_BLOCK and not rest else 0


def _parts(parameter: Tensor) -> int:
    """Into how many parts a sharded matrix cuts its rows; 1 unless tensor parallelism does."""
    if not is_dtensor(parameter):
        return 1
    sizes = zip(parameter.placements, parameter.device_mesh.shape, strict=True)
    return math.prod(size for placement, size in sizes if placement.is_shard(1))


class LowBitState:
    """Mixed into torchao's AdamW, before it in the list of bases.

    Attributes:
        state_format: bf16 or 8bit.
        state: of torch's optimizers.
    """

    state_format: str
    state: dict[Tensor, dict[str, Tensor]]

    def _new_buffer(self, p: Tensor, signed: bool) -> Tensor:
        """A moment of zeros, sharded as ``p`` is; overrides torchao's."""
        from torchao.optim.subclass_8bit import OptimState8bit

        local = local_part(p).detach()
        block = block_size(p)
        if self.state_format == "bf16":
            zeros = torch.zeros_like(local, dtype=torch.bfloat16)
        elif block and local.numel():
            # It appears as float32, whatever the weight: the update is computed in float32, and
            # DTensor cannot follow a change of appearance.
            zeros = OptimState8bit.zeros(local.shape, signed, block, local.device, torch.float32)
        else:
            zeros = torch.zeros_like(local)
        return _sharded_as(p, zeros, p.shape)

    @torch.no_grad()
    def new_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """State as before the first step, to be read into."""
        return {
            "step": torch.tensor(0.0),
            "exp_avg": self._new_buffer(parameter, True),
            "exp_avg_sq": self._new_buffer(parameter, False),
        }

    @torch.no_grad()
    def split(self, parameter: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """``state`` as tensors that a file can hold; they share its memory."""
        block = block_size(parameter)
        if self.state_format == "bf16" or not block:
            return state
        found: dict[str, Tensor] = {}
        for key, value in state.items():
            if key == "step":
                found[key] = value
                continue
            local: Any = local_part(value)  # torchao's class has no types
            if local.numel():
                codes, scale = local.codes, local.scale
            else:  # a rank without rows
                codes, scale = local.to(torch.uint8), local.float()
            rows, columns = parameter.shape
            found[f"{key}_codes_8bit"] = _sharded_as(parameter, codes, parameter.shape)
            scale = scale.view(local.shape[0], local.shape[1] // block)
            found[f"{key}_scale"] = _sharded_as(parameter, scale, (rows, columns // block))
        return found


def _sharded_as(parameter: Tensor, local: Tensor, shape: tuple[int, ...]) -> Tensor:
    """``local`` as this rank's part of a tensor of ``shape``, sharded as ``parameter`` is."""
    if not is_dtensor(parameter):
        return local
    from torch.distributed.tensor import DTensor

    mesh, placements = parameter.device_mesh, parameter.placements
    stride = torch.empty(shape, device="meta").stride()
    whole: Tensor = DTensor.from_local(
        local, mesh, placements, run_check=False, shape=torch.Size(shape), stride=stride
    )
    return whole.to(parameter.device)  # offloaded weights are not where their mesh is
