"""QuickProp (Fahlman, CMU-CS-88-162, 1988): a secant step for each weight by itself.

What is unusual: it is no BFGS. The curvature is the difference quotient of two gradients of the
same weight, so that nothing couples weights, no matrix is kept, and no line is searched. With the
slope g and the step d before it, the parabola through both slopes has its minimum at::

    d <- d g / (g' - g)        where g' is the slope before

The step grows by ``growth`` at the most, which also holds where the slope has not become smaller
and the parabola opens downwards. Gradient descent is added as long as the slope keeps its sign, and
starts a weight that has not moved. The slopes must be those of one function: noise of small batches
is taken for curvature.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from llm_train.errors import check_at_least
from llm_train.model.optimizer.update_rule import Update, UpdateRule


@dataclass(frozen=True, kw_only=True)
class QuickProp(UpdateRule):
    """A secant step for each weight; meant for large batches.

    Attributes:
        learning_rate: the peak of the gradient descent in it, before batch scaling.
        growth: how many times longer than the step before a step may be.
        weight_decay: fraction taken off per step, times the learning rate, of parameters with two
            or more dimensions; it is not part of the slope.
    """

    buffers: ClassVar[int] = 2

    growth: float = 1.75

    def __post_init__(self) -> None:
        super().__post_init__()
        hint = ", or steps could only shrink; 1.75 is usual"
        check_at_least(self, 1, "growth", prefix="optimizer.", hint=hint)

    def update(self, now: Update) -> None:
        """One step."""
        before, step = now.buffer("gradient"), now.buffer("step_before")
        slope = now.gradient
        ratio = slope / before  # by which the slope has shrunk
        growing = ratio >= self.growth / (1.0 + self.growth)  # ratio / (1 - ratio) >= growth
        secant = step * torch.where(growing, self.growth, ratio / (1.0 - ratio))
        secant = torch.where(step == 0, 0.0, secant)
        descends = (step == 0) | (ratio > 0)
        step.copy_(secant - now.rate * torch.where(descends, slope, 0.0))
        before.copy_(slope)
        now.weight.mul_(1.0 - now.rate * now.decay).add_(step)
