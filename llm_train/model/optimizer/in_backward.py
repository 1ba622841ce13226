"""The update of each parameter as soon as backward has its gradient, which is then freed.

What is unusual: the optimizer is the ordinary one and stays whole, so that learning rates, state
and checkpoints are the same in both settings. When a gradient is complete, the optimizer takes its
step with that one parameter in view. The ordinary step after backward then finds no gradient and
does nothing. Gradients take the memory of one parameter, under FSDP of one block, since FSDP
reduces a block at a time and calls the hooks of its shards after that.

It needs an optimizer that treats parameters one by one, as Adam does, and gradients that are final
when backward has them: no accumulation, no clipping by global norm, no reduction afterwards.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from llm_train.context import Context
from llm_train.model.optimizer.clipping import norm_of_norms
from llm_train.model.optimizer.groups import Group

UpdateTime = Literal["step", "backward"]


def problems(context: Context) -> Iterator[str]:
    """What must not touch a gradient between backward and update when there is nothing between."""
    if context.update == "step":
        return
    key, way_out = "model.update=backward", "or write model.update=step"
    clip, strategy, optimizer = context.gradient_clip, context.strategy, context.optimizer
    if clip:
        yield (
            f"{key} with trainer.gradient_clip_val={clip}: the global norm is known only when all "
            f"parameters are updated; remove trainer.gradient_clip_val, {way_out}"
        )
    if not strategy.final_in_backward:
        yield (
            f"{key} under {strategy.name}, which reduces gradients after they would be used; set "
            f"trainer.strategy to fsdp, {way_out}"
        )
    if not optimizer.one_by_one:
        yield (
            f"{key} with model.optimizer={optimizer.name}, which updates parameters together; use "
            f"AdamW, {way_out}"
        )
    if not context.unmasked:
        yield (
            f"{key} with targets that data.source or model.loss ignores: gradients are divided by "
            "the number of the others when backward is over; write model.update=step"
        )
    if context.compile in ("network", "graphs"):
        yield (
            f"{key} with model.compile={context.compile} frees nothing early, since one graph "
            f"gives all gradients at its end; write model.compile=blocks, {way_out}"
        )
    if context.derived.accumulation > 1:
        yield (
            f"{key} with {context.derived.accumulation} micro-batches a step would update after "
            "each of them; raise batch.per_device until a step is one micro-batch, "
            f"{way_out}"
        )


@contextmanager
def in_view(optimizer: torch.optim.Optimizer, group: Group, parameter: Tensor) -> Iterator[None]:
    """Context in which an optimizer has one parameter, which is of ``group``, and no other."""
    whole = optimizer.param_groups
    optimizer.param_groups = [{**group, "params": [parameter]}]
    try:
        yield
    finally:
        optimizer.param_groups = whole


class InBackward:
    """Updates the parameters of an optimizer inside backward, and remembers gradient norms.

    Args:
        optimizer: of which every parameter gets a hook.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._norms: dict[Tensor, Tensor] = {}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.register_post_accumulate_grad_hook(partial(self._update, group))

    @torch.no_grad()
    def _update(self, group: Group, parameter: Tensor) -> None:
        assert parameter.grad is not None
        self._norms[parameter] = torch._foreach_norm([parameter.grad], 2.0)[0]
        with in_view(self._optimizer, group, parameter):
            self._optimizer.step()
        parameter.grad = None

    def take_norm(self) -> Tensor:
        """Global norm of the gradients since the last call, collective over ranks that shard."""
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        norms = [self._norms[p] for p in parameters if p in self._norms]
        self._norms.clear()
        return norm_of_norms(norms)
