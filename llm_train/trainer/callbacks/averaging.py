"""An exponential moving average of the weights, which validations may score in their place.

After every optimizer step ``average <- decay average + (1 - decay) weights``; it begins with the
weights that training begins with. Training does not see it. The average is kept in fp32 whatever
the dtype of the weights, since a step of 0.001 of the distance is lost between two numbers of bf16.
It lies over the ranks as the weights do and is in every checkpoint, so a resumed run continues it,
on another number of ranks too.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from llm_train.context import Context, Part
from llm_train.errors import ConfigError
from llm_train.model.network.init import canonical_name
from llm_train.run_state import task_of
from llm_train.trainer.callbacks.base import EachStep
from llm_train.trainer.strategy.base import require_strategy


@runtime_checkable
class KeepsAverages(Protocol):
    """An optimizer with weights to score that are not those it trains."""

    def averages(self) -> dict[Tensor, Tensor]:
        """The average of each parameter that has been updated."""
        ...


class ScoresAverage(pl.Callback, ABC):
    """Base of callbacks that put an average in the place of the weights for a validation."""

    def __init__(self) -> None:
        self._trained: list[Tensor] = []

    @abstractmethod
    def average(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> list[Tensor]:
        """Of each parameter of the network, in order; empty where the weights are scored."""

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Puts the average in the place of the weights."""
        if average := self.average(trainer, pl_module):
            parameters = _at_rest(trainer, pl_module)
            self._trained = [parameter.clone() for parameter in parameters]
            _overwrite(parameters, average)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Puts the weights back."""
        if self._trained:
            _overwrite(_at_rest(trainer, pl_module), self._trained)
            self._trained = []


class OptimizersAverage(ScoresAverage):
    """Validations while training score the average that the optimizer keeps, if it keeps one."""

    def average(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> list[Tensor]:
        """As the optimizer has it; weights without an update stay what they are."""
        optimizers = [o for o in trainer.optimizers if isinstance(o, KeepsAverages)]
        require_strategy(trainer.strategy).reshard()
        found = [optimizer.averages() for optimizer in optimizers]
        parameters = task_of(pl_module).network.parameters()
        return [found[0].get(p, p.detach()) for p in parameters] if found else []


class EMA(Part, ScoresAverage, EachStep):
    """Exponential moving average of the weights; 4 bytes a parameter.

    Args:
        decay: what an optimizer step leaves of the average; about the last 1 / (1 - decay) steps
            count.
        validate: whether validations score the average, else the weights.
    """

    def __init__(self, decay: float = 0.999, validate: bool = True) -> None:
        if not 0 < decay < 1:
            raise ConfigError(f"decay={decay} must lie between 0 and 1; 0.999 averages 1000 steps")
        super().__init__()
        self.decay = decay
        self.validate = validate
        self._average: dict[str, Tensor] = {}

    def problems(self, context: Context) -> Iterator[str]:
        """Weights that are no parameters of one model cannot be averaged by name."""
        if context.strategy.flattens or not context.strategy.one_model:
            yield (
                f"trainer.callbacks: EMA averages parameters that {context.strategy.name} flattens "
                "or lets differ between ranks; use trainer.strategy=ddp or fsdp"
            )
        if context.optimizer.averages:
            yield (
                f"trainer.callbacks: EMA with model.optimizer={context.optimizer.name}, which has "
                "an average of its own that validations score; remove EMA, or use AdamW"
            )

    def tensors(self, network: nn.Module) -> dict[str, Tensor]:
        """The average by name of the parameter, for checkpoints to write and to read into."""
        if not self._average:
            self._average = {
                canonical_name(name): parameter.detach().to(torch.float32, copy=True)
                for name, parameter in network.named_parameters()
            }
        return self._average

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begins with the present weights, where no checkpoint brought an average."""
        self.tensors(task_of(pl_module).network)

    def on_step_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Moves the average towards the weights."""
        task = task_of(pl_module)
        weights = [parameter.detach().float() for parameter in task.network.parameters()]
        torch._foreach_lerp_(list(self._average.values()), weights, 1 - self.decay)

    def average(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> list[Tensor]:
        """What it has so far."""
        return list(self._average.values()) if self.validate else []


def _at_rest(trainer: pl.Trainer, pl_module: pl.LightningModule) -> list[Tensor]:
    """The parameters as they lie between two uses: a gathered one would be freed, not kept."""
    require_strategy(trainer.strategy).reshard()
    return [parameter.detach() for parameter in task_of(pl_module).network.parameters()]


def _overwrite(parameters: list[Tensor], values: list[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)
