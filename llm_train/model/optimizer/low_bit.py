"""AdamW whose moments take 16 or 8 bits each, and whose weights may be bfloat16 (torchao).

What is unusual: how weights are rounded follows from their dtype. float32 weights (masters) need
nothing. Weights that exist in bfloat16 only (``trainer.precision: bf16-true``) are rounded
stochastically: an update smaller than half a bfloat16 step would be lost by rounding to nearest,
every time; rounded up with a probability equal to the fraction that is cut off, it arrives on
average (Zamirai et al., arXiv:2010.06192).

Random bits are drawn from torch's generator of the rank, which checkpoints restore. Ranks that hold
the same bfloat16 weight would round it differently, so those need sharded weights or one process.

Blocks of 8-bit state do not depend on how weights are sharded. torchao cuts each rank's part of a
parameter into blocks of 256 numbers wherever they fall, and quantizes a part or not by its size, so
that files could not move between shardings.
Here a block never crosses a row of the whole matrix, and whether a matrix is quantized depends on
its rows alone: one process and a thousand ranks hold the same codes and scales::

    matrix (R, C), block B = the largest power of two that divides C, from 64 to 256
    codes  (R, C) bytes                stored as NAME_codes_8bit
    scale  (R, C / B) float32          stored as NAME_scale

Both are sharded as the matrix is. Vectors, and matrices whose rows no such B divides, keep state in
their own dtype. torchao's codes and its update (``single_param_adam``) are used as they are.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn, optim

from llm_train.context import Context, OptimizerTraits
from llm_train.errors import ConfigError
from llm_train.model.optimizer.adamw import AdamSettings
from llm_train.model.optimizer.base import STEP_BYTES
from llm_train.model.optimizer.groups import decay_groups
from llm_train.runtime.extras import library
from llm_train.runtime.quiet import quiet
from llm_train.runtime.sharded import is_dtensor, local_part

_LARGEST_BLOCK = 256
_SMALLEST_BLOCK = 64  # below it the scales would weigh more than a sixteenth of the codes
_TABLE_BYTES = 4 * 256  # the float32 values that codes stand for, kept with each state


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


@dataclass(frozen=True, kw_only=True)
class LowBitAdamW(AdamSettings):
    """torchao's AdamW with small state; bfloat16 weights are rounded stochastically.

    The update is computed in float32 and compiled by torch, once for each shape of parameter.

    Attributes:
        learning_rate: the peak, before batch scaling; the schedule multiplies it.
        state: how moments are kept. ``8bit`` is dynamic codes with a scale for each block of a row
            (arXiv:2110.02861), for matrices with rows that are a multiple of 64; ``bf16`` is
            bfloat16 for every parameter.
        betas: decay rates of the moments. With ``bf16``, a second one above 0.99 would round
            changes of the moment away.
        eps: added to the root of the second moment.
        weight_decay: of parameters with two or more dimensions.
    """

    state: Literal["bf16", "8bit"] = "8bit"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.state == "bf16" and self.betas[1] > 0.99:
            raise ConfigError(
                f"optimizer.betas[1]={self.betas[1]} with state=bf16 is above 0.99, where changes "
                "of the second moment are smaller than bfloat16 resolves; write 0.95, or state=8bit"
            )

    @property
    def traits(self) -> OptimizerTraits:
        """Scales belong to blocks of a row, so matrices must be whole."""
        return OptimizerTraits(
            name=type(self).__name__, flat_fragments=False, compiled=True, update_size="element"
        )

    def problems(self, context: Context) -> Iterator[str]:
        """Weights that ranks would round differently, and state that nothing would make smaller."""
        yield from super().problems(context)
        replicas = context.strategy.weight_replicas
        if context.precision == "bf16-true" and replicas > 1 and not context.strategy.flattens:
            yield (
                "model.optimizer=LowBitAdamW with trainer.precision=bf16-true and weights that "
                f"several ranks hold ({context.strategy.name}): they would round the same weight "
                "differently; set trainer.strategy=fsdp or trainer.precision=bf16-mixed, or use "
                "AdamW"
            )
        trained = [p for _, p in context.parameters if p.requires_grad]
        if self.state != "bf16" and not any(self.quantizes(p) for p in trained):
            yield (
                f"model.optimizer.init_args.state={self.state} has no effect: no matrix of "
                "model.network has rows that are a multiple of 64; widen the network, or use "
                "state=bf16 or AdamW"
            )

    def build(self, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> optim.Optimizer:
        """Constructs torchao's AdamW over two decay groups.

        Raises:
            ConfigError: torchao is not installed.
        """
        with quiet():
            theirs = library("torchao.optim", "torchao", "model.optimizer=LowBitAdamW")._AdamW
        kind = type("LowBitAdamW", (LowBitState, theirs), {"state_format": self.state})
        optimizer: optim.Optimizer = kind(
            decay_groups(named_parameters, self.weight_decay),
            **self.adam_group,
            bf16_stochastic_round=True,  # torchao does so for bfloat16 weights only
        )
        return optimizer

    def quantizes(self, parameter: Tensor) -> bool:
        """Whether the moments of ``parameter`` are kept as codes."""
        return self.state == "8bit" and block_size(parameter) > 0

    def state_bytes(self, name: str, parameter: Tensor) -> int:
        """Two moments and a step counter."""
        count = local_part(parameter).numel()
        if not self.quantizes(parameter):
            return 2 * count * (2 if self.state == "bf16" else parameter.itemsize) + STEP_BYTES
        moment = count + 4 * (count // block_size(parameter)) + (_TABLE_BYTES if count else 0)
        return 2 * moment + STEP_BYTES
