"""Optimizers that are given by the update of one parameter: all that they have in common.

What is unusual: a rule is the configuration itself. torch's groups hold only what differs from
group to group, the learning rate and the decay. State is in float32, whatever the weight is, since
an average in bfloat16 stops moving; it has the parameter's shape and sharding, so that an update
of element by element knows nothing of ranks. Steps are counted for each parameter and by Python:
a parameter may be left out of a step, and a device would have to be asked for its count.

How far a layer may move in proportion to its own size (``Layerwise``) is a matter of norms of whole
tensors. On a DTensor, ``vector_norm`` is reduced over its mesh, so that every sharding takes the
same step as one process; fragments of a flattened tensor have no such norm. Vectors (norms'
weights, biases) are left alone, as usual: there is no layer in them to keep in proportion, and a
bias that begins at zero could never leave it.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn, optim

from llm_train.context import OptimizerTraits, UpdateSize
from llm_train.model.optimizer.base import Optimizer
from llm_train.model.optimizer.groups import Group, check_fields, decay_groups
from llm_train.runtime.sharded import local_part, whole


def state_dtype(parameter: Tensor) -> torch.dtype:
    """float32, or wider where the parameter is."""
    return torch.promote_types(parameter.dtype, torch.float32)


class Update(NamedTuple):
    """One update of one parameter.

    Attributes:
        name: of the parameter.
        step: number of this update, from 1.
        rate: the learning rate now.
        decay: fraction of the weight taken off, times the rate; 0 for vectors.
        weight: to be changed in place.
        gradient: in float32 or wider.
        state: what the optimizer keeps for the parameter.
    """

    name: str
    step: int
    rate: float
    decay: float
    weight: Tensor
    gradient: Tensor
    state: dict[str, Any]  # torch's own type

    def buffer(self, name: str) -> Tensor:
        """State in the shape of the weight; zero before the first update."""
        if name not in self.state:
            dtype = state_dtype(self.weight)
            self.state[name] = torch.zeros_like(self.weight, dtype=dtype, requires_grad=False)
        found: Tensor = self.state[name]
        return found

    def move(self, direction: Tensor) -> None:
        """``W <- (1 - rate decay) W - rate direction``: decoupled decay, arXiv:1711.05101."""
        self.weight.mul_(1.0 - self.rate * self.decay)
        self.weight.add_(direction, alpha=-self.rate)


@dataclass(frozen=True, kw_only=True)
class UpdateRule(Optimizer):
    """Base of these optimizers.

    Attributes:
        learning_rate: the peak, before batch scaling; the schedule multiplies it.
        weight_decay: fraction taken off per step, times the learning rate, of parameters with two
            or more dimensions.
    """

    needs_whole: ClassVar[bool] = False
    """Whether it looks at whole tensors, or at their names; a flattened fragment has neither."""

    update_size: ClassVar[UpdateSize] = "gradient"
    averages: ClassVar[bool] = False
    """See ``OptimizerTraits``."""

    buffers: ClassVar[int] = 1
    """How many tensors of a parameter's shape ``update`` keeps."""

    learning_rate: float
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def traits(self) -> OptimizerTraits:
        """Element by element, unless a subclass says otherwise."""
        return OptimizerTraits(
            name=type(self).__name__,
            on_host=True,
            flat_fragments=not self.needs_whole,
            update_size=self.update_size,
            averages=self.averages,
        )

    @abstractmethod
    def update(self, now: Update) -> None:
        """Changes the weight and the state of one parameter."""

    def build(self, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> optim.Optimizer:
        """Constructs the optimizer over two decay groups."""
        return ByRule(decay_groups(named_parameters, self.weight_decay), self)

    def state_bytes(self, name: str, parameter: Tensor) -> int:
        """The buffers; steps are counted on the host."""
        return self.buffers * local_part(parameter).numel() * state_dtype(parameter).itemsize


class ByRule(optim.Optimizer):
    """The torch optimizer of a rule."""

    def __init__(self, groups: list[Group], rule: UpdateRule) -> None:
        super().__init__(groups, {"lr": rule.learning_rate})
        self._rule = rule
        self._names = {
            parameter: name
            for group in self.param_groups
            for name, parameter in zip(group["param_names"], group["params"], strict=True)
        }

    @torch.no_grad()
    def step(  # type: ignore[override]  # torch's overloads say the same
        self, closure: Callable[[], float] | None = None
    ) -> float | None:
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

    def _update(self, group: Group, parameter: Tensor) -> None:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        state["step"] = state.get("step", 0) + 1
        now = Update(
            name=self._names.get(parameter, ""),  # a strategy may have flattened the parameters
            step=state["step"],
            rate=group["lr"],
            decay=group["weight_decay"],
            weight=parameter,
            gradient=gradient.to(state_dtype(parameter)),
            state=state,
        )
        self._rule.update(now)


@dataclass(frozen=True, kw_only=True)
class Layerwise(UpdateRule):
    """Base of optimizers with a trust ratio; needs whole matrices.

    Attributes:
        learning_rate: the peak, before batch scaling; the schedule multiplies it.
        weight_decay: of parameters with two or more dimensions.
    """

    needs_whole: ClassVar[bool] = True
    update_size: ClassVar[UpdateSize] = "layer"

    @staticmethod
    def trust_ratio(weight: Tensor, update: Tensor, weight_share: float = 0.0) -> Tensor | float:
        """``|W| / (|update| + weight_share |W|)``; 1 for vectors and where a norm is zero."""
        if weight.ndim < 2:
            return 1.0
        weight = weight.to(update.dtype)
        size, moved = (whole(torch.linalg.vector_norm(each)) for each in (weight, update))
        usable = (size > 0) & (moved > 0)
        return torch.where(usable, size / (moved + weight_share * size), 1.0)
