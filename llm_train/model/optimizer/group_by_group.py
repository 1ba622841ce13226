"""torch's interface around an update of one group of parameters."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import optim

from llm_train.model.optimizer.groups import Group


class GroupByGroup(optim.Optimizer):
    """Base of optimizers that update one group after another."""

    @abstractmethod
    def update_group(self, group: Group) -> None:
        """One update of every parameter of the group that has a gradient."""

    @torch.no_grad()
    def step(  # type: ignore[override]  # torch's overloads say the same
        self, closure: Callable[[], float] | None = None
    ) -> float | None:
        """One update of every group."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self.update_group(group)
        return loss
