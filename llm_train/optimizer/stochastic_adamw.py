"""AdamW for weights that exist in bfloat16 only, rounded stochastically (torchao).

What is unusual: there are no float32 masters. An update smaller than half a bfloat16 step would be
lost by rounding to nearest, every time; rounded up with a probability equal to the fraction that is
cut off, it arrives on average (Zamirai et al., arXiv:2010.06192). Weight, gradient and both moments
take 2 bytes each, 8 bytes a parameter against 16 with masters.

Random bits are drawn from torch's generator of the rank, which checkpoints restore. Ranks that hold
the same weight would round it differently, so it needs sharded weights or one process.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn, optim

from llm_train.errors import ConfigError
from llm_train.optimizer.base import Optimizer
from llm_train.optimizer.groups import check_adamw, decay_groups
from llm_train.quiet import quiet


@dataclass(frozen=True, kw_only=True)
class StochasticAdamW(Optimizer):
    """torchao's AdamW with stochastic rounding; for ``trainer.precision: bf16-true``.

    The update is computed in float32 and compiled by torch, once for each shape of parameter.

    Attributes:
        learning_rate: the peak, before batch scaling; the schedule multiplies it.
        betas: decay rates of the moments, which are kept in bfloat16.
        eps: added to the root of the second moment.
        weight_decay: of parameters with two or more dimensions.
    """

    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1

    def __post_init__(self) -> None:
        check_adamw(self)

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
                "model.optimizer=StochasticAdamW needs torchao, which is not installed; "
                "pip install 'llm-train[torchao]', or use AdamW"
            ) from error
        optimizer: optim.Optimizer = _AdamW(
            decay_groups(named_parameters, self.weight_decay),
            lr=self.learning_rate,
            betas=self.betas,
            eps=self.eps,
            bf16_stochastic_round=True,
        )
        return optimizer
