"""Leaves out the update of a step whose gradient is not finite, on all ranks alike.

Without it such a step ends the run at the next log point. With it the host reads one number each
step, which it has to wait for: the price of not making an update that cannot be taken back.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from llm_train.context import Context, Part
from llm_train.errors import LLMTrainError, check_at_least
from llm_train.run_state import TaskBase, task_of
from llm_train.trainer.logger.base import log_event
from llm_train.trainer.strategy.base import require_strategy


class SkipNotFinite(Part, pl.Callback):
    """Skips steps whose gradient is not finite on any rank, and writes an event ``skipped``.

    The event names the samples of the step, by their position in the order of the data, and the
    first module whose output is not finite. A skipped step counts as a step, its loss nowhere.

    Args:
        limit: skipped steps since the start that a run survives; one more ends it.
    """

    def __init__(self, limit: int = 10) -> None:
        self.limit = limit
        check_at_least(self, 1, "limit", prefix="trainer.callbacks: ", hint="; 10 is usual")
        self._sums = torch.zeros(2)
        self._batches: list[Tensor] = []

    def problems(self, context: Context) -> Iterator[str]:
        """Somebody else updates."""
        if context.strategy.flattens or context.update == "backward":
            yield (
                "trainer.callbacks: SkipNotFinite cannot leave out updates that "
                f"{context.strategy.name} makes with model.update={context.update}; use ddp or "
                "fsdp with model.update=step, or remove it"
            )

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Tensor, batch_idx: int
    ) -> None:
        """Remembers the micro-batches of a step, and the sums of before."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._batches = []
            self._sums = task_of(pl_module).run_state.sums.clone()
        self._batches.append(batch)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Takes the gradients away: an optimizer passes over parameters that have none."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = require_strategy(trainer.strategy).gradient_norm(gradients)
        wrong = (~norm.isfinite()).to(self._sums)
        if not trainer.strategy.reduce(wrong, reduce_op="max").item():
            return
        task = task_of(pl_module)
        where = self._first_module(trainer, task)
        for parameter in parameters:
            parameter.grad = None
        task.run_state.sums.copy_(self._sums)
        step, size = trainer.global_step, task.derived.samples_per_step
        task.run_state.skipped += 1
        samples = [step * size, (step + 1) * size - 1]
        log_event(trainer.loggers, "skipped", step + 1, samples=samples, module=where)
        if task.run_state.skipped > self.limit:
            raise LLMTrainError(
                f"the gradient of step {step + 1} is not finite, and {self.limit} steps have been "
                f"skipped already; first module whose output is not finite: {where or 'none'}; "
                "lower model.optimizer's learning rate, or raise the limit of SkipNotFinite"
            )

    def _first_module(self, trainer: pl.Trainer, task: TaskBase) -> str:
        """Of the first rank that has one, found by a second forward; "" if backward went wrong."""
        found: list[str] = []

        def look(name: str, _: nn.Module, __: object, output: object) -> None:
            tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
            if not all(bool(tensor.isfinite().all()) for tensor in tensors):
                found.append(name)

        named = task.network.named_modules()
        handles = [module.register_forward_hook(partial(look, name)) for name, module in named]
        strategy = require_strategy(trainer.strategy)
        devices = [strategy.root_device] if strategy.root_device.type == "cuda" else []
        same_dropout = torch.random.fork_rng(devices)  # of the steps to come
        with torch.no_grad(), same_dropout, strategy.precision_plugin.forward_context():
            for index, batch in enumerate(self._batches):
                task.training_step(batch, index)
        for handle in handles:
            handle.remove()
        strategy.reshard()
        first = [f"{found[0]} on rank {trainer.global_rank}" if found else ""]
        if dist.is_initialized():
            first *= trainer.world_size
            dist.all_gather_object(first, first[0])
        return next(filter(None, first), "")
