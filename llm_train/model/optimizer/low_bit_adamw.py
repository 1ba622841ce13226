"""AdamW whose moments take 16 or 8 bits each, and whose weights may be bfloat16 (torchao).

What is unusual: how weights are rounded follows from their dtype. float32 weights (masters) need
nothing. Weights that exist in bfloat16 only (``trainer.precision: bf16-true``) are rounded
stochastically: an update smaller than half a bfloat16 step would be lost by rounding to nearest,
every time; rounded up with a probability equal to the fraction that is cut off, it arrives on
average (Zamirai et al., arXiv:2010.06192).

Random bits are drawn from torch's generator of the rank, which checkpoints restore. Ranks that hold
the same bfloat16 weight would round it differently, so those need sharded weights or one process.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn, optim

from llm_train.context import Context, OptimizerTraits
from llm_train.errors import ConfigError
from llm_train.model.optimizer.base import STEP_BYTES, Optimizer
from llm_train.model.optimizer.groups import check_fields, decay_groups
from llm_train.model.optimizer.low_bit import TABLE_BYTES, LowBitState, block_size
from llm_train.runtime.quiet import quiet
from llm_train.runtime.sharded import local_part


@dataclass(frozen=True, kw_only=True)
class LowBitAdamW(Optimizer):
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

    learning_rate: float
    state: Literal["bf16", "8bit"] = "8bit"
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1

    def __post_init__(self) -> None:
        check_fields(self)
        if self.state == "bf16" and self.betas[1] > 0.99:
            raise ConfigError(
                f"optimizer.betas[1]={self.betas[1]} with state=bf16 is above 0.99, where changes "
                "of the second moment are smaller than bfloat16 resolves; write 0.95, or state=8bit"
            )

    @property
    def traits(self) -> OptimizerTraits:
        """Scales belong to blocks of a row, so matrices must be whole."""
        return OptimizerTraits(name=type(self).__name__, flat_fragments=False, compiled=True)

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
        try:
            with quiet():
                from torchao.optim import _AdamW
        except ImportError as error:
            raise ConfigError(
                "model.optimizer=LowBitAdamW needs torchao, which is not installed; "
                "pip install 'llm-train[torchao]', or use AdamW"
            ) from error
        kind = type("LowBitAdamW", (LowBitState, _AdamW), {"state_format": self.state})
        optimizer: optim.Optimizer = kind(
            decay_groups(named_parameters, self.weight_decay),
            lr=self.learning_rate,
            betas=self.betas,
            eps=self.eps,
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
        moment = count + 4 * (count // block_size(parameter)) + (TABLE_BYTES if count else 0)
        return 2 * moment + STEP_BYTES
