"""Schedule-free AdamW (Defazio et al., arXiv:2405.15682, algorithm 1): an average for a decay.

With Adam's normaliser D = sqrt(v / (1 - b2^t)) + eps, the gradient g taken at y, and rate r_t::

    z <- z - r_t (g / D + decay y)
    x <- (1 - c) x + c z               c = r_t^2 / (r_1^2 + ... + r_t^2)
    y <- (1 - b1) z + b1 x

What is unusual: there are three points, of which the network trains at y and is good at x. The
parameters are y and the state holds z, so that it takes no more memory than AdamW; x follows from
the two. It is what validations score (``trainer/callbacks/averaging.py``), and checkpoints hold it
as ``average`` for whoever reads weights alone. Training never leaves y: a swap in place and back
would round. The schedule should be ``Constant`` with a warm-up.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn, optim

from llm_train.context import Context, UpdateSize
from llm_train.model.optimizer.groups import decay_groups
from llm_train.model.optimizer.update_rule import ByRule, Update, UpdateRule, state_dtype


@dataclass(frozen=True, kw_only=True)
class ScheduleFreeAdamW(UpdateRule):
    """AdamW whose weights are averaged while it trains; runs under DDP and FSDP, not under ZeRO.

    Attributes:
        learning_rate: the peak, before batch scaling; 1 to 10 times AdamW's.
        betas: share of the average in the point where gradients are taken, and decay rate of the
            second moment.
        eps: added to the root of the second moment.
        weight_decay: fraction taken off per step, times the learning rate, of parameters with two
            or more dimensions.
    """

    needs_whole: ClassVar[bool] = True
    update_size: ClassVar[UpdateSize] = "element"
    averages: ClassVar[bool] = True
    buffers: ClassVar[int] = 2

    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1

    def problems(self, context: Context) -> Iterator[str]:
        """Replicas that differ have an average each, of which a checkpoint could hold but one."""
        yield from super().problems(context)
        if not context.strategy.one_model:
            yield (
                f"model.optimizer={self.traits.name} under {context.strategy.name} would average "
                "each replica by itself; set trainer.strategy to ddp or fsdp, or use AdamW"
            )

    def build(self, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> optim.Optimizer:
        """Constructs the optimizer over two decay groups."""
        return Averaging(decay_groups(named_parameters, self.weight_decay), self)

    def update(self, now: Update) -> None:
        """One step."""
        (first, second), gradient = self.betas, now.gradient
        square = now.buffer("exp_avg_sq").mul_(second)
        square.addcmul_(gradient, gradient, value=1.0 - second)
        root = (square / (1.0 - second**now.step)).sqrt_().add_(self.eps)
        slope = gradient / root + now.decay * now.weight
        if "z" not in now.state:
            now.buffer("z").copy_(now.weight)
        rates = now.state["squared_rates"] = now.state.get("squared_rates", 0.0) + now.rate**2
        share = now.rate**2 / rates if rates else 0.0
        now.weight.lerp_(now.buffer("z").to(now.weight.dtype), share)
        now.weight.sub_(slope, alpha=now.rate * (1.0 - first * (1.0 - share)))
        now.buffer("z").sub_(slope, alpha=now.rate)

    def average(self, weight: Tensor, state: dict[str, Any]) -> Tensor:
        """x, by the equation of y."""
        return torch.lerp(state["z"], weight.to(state["z"].dtype), 1.0 / self.betas[0])


class Averaging(ByRule):
    """The torch optimizer of ``ScheduleFreeAdamW``."""

    _rule: ScheduleFreeAdamW

    @torch.no_grad()
    def averages(self) -> dict[Tensor, Tensor]:
        """The average of each parameter that has been updated."""
        return {p: self._rule.average(p, state) for p, state in self.state.items() if state}

    @torch.no_grad()
    def new_state(self, parameter: Tensor) -> dict[str, Any]:
        """State to be read into."""
        zeros = torch.zeros_like(parameter, dtype=state_dtype(parameter), requires_grad=False)
        return {"z": zeros, "exp_avg_sq": zeros.clone()}

    @torch.no_grad()
    def split(self, parameter: Tensor, state: dict[str, Any]) -> dict[str, Any]:
        """The state, and the average for whoever reads the weights alone."""
        return {**state, "average": self._rule.average(parameter, state)} if state else state
