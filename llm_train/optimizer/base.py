"""What an optimizer configuration must offer: parameters in, one torch optimizer out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

from torch import nn, optim


class Optimizer(ABC):
    """Configuration of an optimizer. Subclasses are frozen, keyword-only dataclasses."""

    @abstractmethod
    def build(self, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> optim.Optimizer:
        """Constructs the optimizer; each parameter that requires a gradient is in just one group.

        Each group's ``lr`` is its peak learning rate before batch scaling; the task multiplies it.
        """
