"""What an optimizer configuration must offer: parameters in, one torch optimizer out."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from llm_train.context import Context, OptimizerTraits, Part
from llm_train.runtime.sharded import local_part, tensor_bytes

STEP_BYTES = 4
"""Of the step counter that torch's and torchao's Adam keep alongside each parameter, a float32."""

# Classes of torch.optim that divide each gradient, decay included, by its own size.
_BOUNDED = ("Adadelta", "Adagrad", "Adam", "Adamax", "NAdam", "RAdam", "RMSprop")


class Optimizer(Part, ABC):
    """Configuration of an optimizer. Subclasses are frozen, keyword-only dataclasses."""

    needs = "whole matrices"
    """What a flattened fragment lacks, in words, for those that cannot update one."""

    @property
    def traits(self) -> OptimizerTraits:
        """What other parts need to know of this optimizer."""
        return OptimizerTraits(name=type(self).__name__)

    def problems(self, context: Context) -> Iterator[str]:
        """Parameters that it refuses, weight decay beyond zero, flat fragments."""
        built = context.torch_optimizer
        yield from _decay(built, context.batch.scaling.factor(context.batch.tokens))
        if context.strategy.flattens and not self.traits.flat_fragments:
            yield (
                f"model.optimizer={self.traits.name} needs {self.needs}, and "
                f"{context.strategy.name} flattens them; set trainer.strategy to ddp or fsdp, or "
                "use AdamW"
            )

    def notes(self, context: Context) -> Iterator[str]:
        """A batch rule that was derived for other updates."""
        built, scaling = context.torch_optimizer, context.batch.scaling
        follows = self.traits.update_size == "gradient" or isinstance(built, optim.SGD)
        if scaling.rule == "linear" and scaling.factor(context.batch.tokens) != 1 and not follows:
            yield (
                "batch.scaling.rule=linear was derived for SGD, whose updates grow with the "
                f"gradient (arXiv:1706.02677), and those of {type(built).__name__} do not; the "
                "square root was derived for Adam (arXiv:2205.10287): set batch.scaling.rule=sqrt, "
                "or tune the rate at this batch"
            )

    @abstractmethod
    def build(self, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> optim.Optimizer:
        """Constructs the optimizer; each parameter that requires a gradient is in just one group.

        Each group's ``lr`` is its peak learning rate before batch scaling; the task multiplies it.
        """

    def state_bytes(self, name: str, parameter: Tensor) -> float:
        """Bytes of state that one parameter has after the first step; nan where that is unknown.

        Found by taking a step without memory; classes that know a formula override it.

        Args:
            name: of the parameter.
            parameter: on any device, meta included; a DTensor counts as this rank's part of it.
        """
        shape, dtype = local_part(parameter).shape, parameter.dtype
        try:
            with FakeTensorMode(), MadeUpNumbers():
                stand_in = nn.Parameter(torch.empty(shape, dtype=dtype))
                stand_in.grad = torch.empty_like(stand_in)
                optimizer = self.build([(name, stand_in)])
                optimizer.step()
                state = optimizer.state[stand_in].values()
        except Exception:  # any that a step without values can raise
            return math.nan
        return sum(tensor_bytes(value) for value in state if isinstance(value, Tensor))


class MadeUpNumbers(TorchDispatchMode):
    """Lets an update read numbers, a count of steps for instance, where tensors have none."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        """Runs the operator, unless it is the one that reads."""
        if func is not torch.ops.aten._local_scalar_dense.default:
            return func(*args, **(kwargs or {}))
        dtype: torch.dtype = args[0].dtype
        return 0.5 if dtype.is_floating_point else dtype == torch.bool or 1


def _decay(optimizer: optim.Optimizer, factor: float) -> Iterator[str]:
    """Decay that takes a whole weight or more per step, at the peak of the learning rate."""
    for group in optimizer.param_groups:
        rate, decay = float(group["lr"]) * factor, group.get("weight_decay", 0.0)
        bounded = type(optimizer).__name__ in _BOUNDED and not group.get("decoupled_weight_decay")
        if rate * decay >= 1.0 and not bounded:
            yield (
                f"model.optimizer: learning rate {rate:g} x weight decay {decay:g} takes "
                f"{rate * decay:g} of each weight in one step; lower the decay below {1 / rate:g}"
            )
