"""Optimizer state in 8 or 4 bits, in blocks that do not depend on how weights are sharded.

What is unusual: torchao cuts each rank's part of a parameter into blocks of 256 numbers wherever
they fall, and quantizes a part or not by its size. Here a block never crosses a row of the whole
matrix, and whether a matrix is quantized depends on its rows alone. So one process and a thousand
ranks hold the same codes and scales, and files move between them::

    matrix (R, C), block B = the largest power of two that divides C, from 64 to 256 (4 bits: 128)
    codes  (R, C) bytes, for 4 bits (R, C / 2)      stored as NAME_codes_FORMAT
    scale  (R, C / B) float32                       stored as NAME_scale

Both are sharded as the matrix is. Vectors, and matrices whose rows no such B divides, keep state in
their own dtype. torchao's update itself (``single_param_adam``) is used as it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

_SMALLEST_BLOCK = 64  # below it the scales would weigh more than a sixteenth of 8 bit codes


@dataclass(frozen=True, kw_only=True)
class Format:
    """How a number of the state is stored.

    Attributes:
        bits: of a code.
        largest_block: numbers that share a scale, at most.
        table: float32 values that codes stand for, kept beside each state; 0: codes are numbers.
    """

    bits: int
    largest_block: int
    table: int

    def block(self, parameter: Tensor) -> int:
        """Numbers that share a scale; 0 where the state of ``parameter`` is not quantized."""
        if parameter.ndim != 2:
            return 0
        columns, parts = parameter.shape[1], _parts(parameter)
        if columns % parts:
            return 0
        columns //= parts
        block = min(columns & -columns, self.largest_block)
        return block if block >= _SMALLEST_BLOCK else 0

    def bytes(self, count: int, block: int) -> int:
        """Of one state of ``count`` numbers."""
        return count * self.bits // 8 + 4 * (count // block) + 4 * self.table if count else 0


FORMATS = {
    "8bit": Format(bits=8, largest_block=256, table=256),
    "fp8": Format(bits=8, largest_block=256, table=0),
    "4bit": Format(bits=4, largest_block=128, table=16),
}


def _parts(parameter: Tensor) -> int:
    """Into how many parts a sharded matrix cuts its rows; 1 unless tensor parallelism does."""
    if not isinstance(parameter, DTensor):
        return 1
    sizes = zip(parameter.placements, parameter.device_mesh.shape, strict=True)
    return math.prod(size for placement, size in sizes if placement == Shard(1))


class LowBitState:
    """Mixed into torchao's AdamW, before it in the list of bases.

    Attributes:
        state_format: bf16, or a key of ``FORMATS``.
        state: of torch's optimizers.
    """

    state_format: str
    state: dict[Tensor, dict[str, Any]]

    def _new_buffer(self, p: Tensor, signed: bool) -> Tensor:
        """A moment of zeros, in the layout of ``p``; overrides torchao's."""
        local = (p.to_local() if isinstance(p, DTensor) else p).detach()
        if self.state_format == "bf16":
            return _like(p, torch.zeros_like(local, dtype=torch.bfloat16))
        block = FORMATS[self.state_format].block(p)
        if not block or not local.numel():
            return _like(p, torch.zeros_like(local))
        return _like(p, _zeros(self.state_format, local, signed, block))

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
        format_ = FORMATS.get(self.state_format)
        block = format_.block(parameter) if format_ else 0
        if format_ is None or not block:
            return state
        found: dict[str, Tensor] = {}
        for key, value in state.items():
            if key == "step":
                found[key] = value
                continue
            local: Any = value.to_local() if isinstance(value, DTensor) else value
            rows, columns = local.shape
            codes = torch.empty(0, dtype=torch.uint8, device=local.device)
            scale = torch.empty(0, device=local.device)
            if local.numel():  # a rank without rows holds no codes
                codes, scale = local.codes.view(torch.uint8), local.scale
            width = columns * format_.bits // 8
            found[f"{key}_codes_{self.state_format}"] = _rows(parameter, codes.view(rows, width))
            found[f"{key}_scale"] = _rows(parameter, scale.view(rows, columns // block))
        return found


def _zeros(name: str, local: Tensor, signed: bool, block: int) -> Tensor:
    from torchao.optim.subclass_4bit import OptimState4bit
    from torchao.optim.subclass_8bit import OptimState8bit
    from torchao.optim.subclass_fp8 import OptimStateFp8

    # As what the state appears, whatever it is: the update is computed in float32, and DTensor
    # cannot follow a change of appearance.
    where = {"block_size": block, "device": local.device, "dtype": torch.float32}
    if name == "fp8":
        zeros: Tensor = OptimStateFp8.zeros(local.shape, **where)
    else:
        kind = OptimState8bit if name == "8bit" else OptimState4bit
        zeros = kind.zeros(local.shape, signed, **where)
    return zeros


def _like(parameter: Tensor, local: Tensor) -> Tensor:
    """``local`` as this rank's part of a tensor that is sharded as ``parameter`` is."""
    if not isinstance(parameter, DTensor):
        return local
    shape, stride = parameter.shape, parameter.stride()
    whole: Tensor = DTensor.from_local(
        local,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=shape,
        stride=stride,
    )
    return whole.to(parameter.device)  # offloaded weights are not where their mesh is


def _rows(parameter: Tensor, local: Tensor) -> Tensor:
    """``local``, whose rows belong to the rows of ``parameter``, sharded as those are."""
    if not isinstance(parameter, DTensor):
        return local
    columns = local.shape[1] * _parts(parameter)
    return DTensor.from_local(
        local,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=torch.Size((parameter.shape[0], columns)),
        stride=(columns, 1),
    )
