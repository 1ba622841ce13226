"""An optimizer: Lion (Chen et al., arXiv:2302.06675), the sign of an interpolated momentum.

What is unusual: nothing here knows about sharding. Every operation is element by element, so the
same lines update plain tensors and the shards of a DTensor, and state in the parameter's shape is
saved and resharded like AdamW's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import nn, optim

from llm_train.model.optimizer import Optimizer, decay_groups
from llm_train.model.optimizer.groups import check_fields


@dataclass(frozen=True, kw_only=True)
class Lion(Optimizer):
    """Configuration of Lion.

    Attributes:
        learning_rate: the peak; about a third of what AdamW would use.
        betas: weight of the momentum in the update, and decay rate of the momentum.
        weight_decay: of parameters with two or more dimensions.
    """

    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.3

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> optim.Optimizer:
        """Constructs the optimizer over two decay groups."""
        groups = decay_groups(named_parameters, self.weight_decay)
        return SignMomentum(groups, {"lr": self.learning_rate, "betas": self.betas})


class SignMomentum(optim.Optimizer):
    """The optimizer that ``Lion`` builds."""

    def __init__(self, groups: list[dict[str, Any]], defaults: dict[str, Any]) -> None:
        super().__init__(groups, defaults)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(group, parameter)
        return loss

    def _update(self, group: dict[str, Any], parameter: torch.Tensor) -> None:
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"]
        direction = torch.lerp(gradient, momentum, group["betas"][0]).sign()
        parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
        parameter.add_(direction, alpha=-group["lr"])
        momentum.lerp_(gradient, 1.0 - group["betas"][1])
