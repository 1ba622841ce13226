"""What an optimizer configuration must offer: parameters in, one torch optimizer out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor, nn, optim
from torch._subclasses.fake_tensor import FakeTensorMode

from llm_train.model.optimizer.memory import tensor_bytes


class Optimizer(ABC):
    """Configuration of an optimizer. Subclasses are frozen, keyword-only dataclasses."""

    compiled = False
    """Whether torch compiles the update, so that it holds no tensor of its own."""

    @abstractmethod
    def build(self, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> optim.Optimizer:
        """Constructs the optimizer; each parameter that requires a gradient is in just one group.

        Each group's ``lr`` is its peak learning rate before batch scaling; the task multiplies it.
        """

    def state_bytes(self, name: str, parameter: Tensor) -> int:
        """Bytes of state that one parameter has after the first step.

        Found by taking a step without memory; classes that know a formula override it.

        Args:
            name: of the parameter.
            parameter: on any device, meta included; a DTensor counts as this rank's part of it.
        """
        shape, dtype = getattr(parameter, "_local_tensor", parameter).shape, parameter.dtype
        with FakeTensorMode():
            stand_in = nn.Parameter(torch.empty(shape, dtype=dtype))
            stand_in.grad = torch.empty_like(stand_in)
            optimizer = self.build([(name, stand_in)])
            optimizer.step()
            state = optimizer.state[stand_in].values()
            return sum(tensor_bytes(value) for value in state if isinstance(value, Tensor))
