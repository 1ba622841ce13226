"""Measures the gradient noise scale while training, from two norms that a step has anyway.

The small batch is one micro-batch: the first of each rank's step, whose gradient nothing has been
added to and no other rank has seen. The big batch is the step. One norm is taken as backward makes
the gradients, before any reduction; the other is the one that clipping needs. Nothing waits and no
collective is called: the sums travel with the reduction of the next log point.

The cost is one more pass over the gradients in every ``every``-th step, a read of 4 bytes a
parameter, and two small kernels a parameter.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from llm_train.analysis.noise import estimates
from llm_train.context import Context, Part
from llm_train.errors import check_at_least
from llm_train.model.optimizer.clipping import norm_of_norms
from llm_train.run_state import task_of
from llm_train.trainer.callbacks.base import EachStep
from llm_train.trainer.strategy.base import require_strategy


class NoiseScale(Part, EachStep):
    """Logs |G|^2, tr C and their smoothed ratio, the noise scale in tokens (``llm-train advise``).

    Args:
        every: optimizer steps between two measurements.
        smoothing: what a log point leaves of the averages whose ratio is logged; about the last
            1 / (1 - smoothing) log points count.
    """

    def __init__(self, every: int = 1, smoothing: float = 0.95) -> None:
        self.every = every
        self.smoothing = smoothing
        prefix = "NoiseScale."
        check_at_least(self, 1, "every", prefix=prefix, hint=" optimizer step")
        check_at_least(self, 0, "smoothing", below=1, prefix=prefix, hint="; 0 smooths nothing")
        self._smoothed = [0.0, 0.0]
        # Of this rank since the last log point: |G|^2, tr C and how many of them.
        self._sums = torch.zeros(3, dtype=torch.float64)
        self._norms: list[Tensor] | None = None  # of the micro-batch that is looked at
        self._small: Tensor | None = None  # its squared norm, until the step is over
        self._trainer: pl.Trainer | None = None  # until training starts

    def problems(self, context: Context) -> Iterator[str]:
        """Two batches of different size, and gradients that can be seen before they are reduced."""
        name, strategy = "trainer.callbacks: NoiseScale", context.strategy
        if context.derived.accumulation * context.derived.data_ranks < 2:
            yield (
                f"{name} compares a micro-batch with the step, and batch.tokens="
                f"{context.batch.tokens} is one micro-batch; lower batch.per_device"
            )
        if strategy.hides_gradients:
            yield (
                f"{name}: under {strategy.name} no rank's own gradient can be read; measure with "
                "trainer.strategy=ddp or on one device, or remove it"
            )
        if not context.unmasked:
            yield f"{name}: micro-batches with ignored targets differ in their tokens; remove it"
        if context.precision == "16-mixed":
            yield f"{name}: gradients under 16-mixed are scaled; use bf16-mixed, or remove it"

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Rides with the reductions of log points, and watches every parameter."""
        self._trainer, task = trainer, task_of(pl_module)
        self._place(self._sums)
        task.run_state.riders.append(self)
        for parameter in task.network.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._look)  # type: ignore[no-untyped-call]

    def _look(self, parameter: Tensor) -> None:
        if self._norms is not None and parameter.grad is not None:
            self._norms += torch._foreach_norm([parameter.grad], 2.0)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Looks at the first micro-batch of a step, whose gradients stand alone."""
        first = batch_idx % trainer.accumulate_grad_batches == 0
        alone = trainer.accumulate_grad_batches * task_of(pl_module).derived.data_ranks < 2
        if first and not alone and trainer.global_step % self.every == 0:
            self._norms = []

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning has divided its loss by the accumulation."""
        if self._norms:
            self._small = (norm_of_norms(self._norms) * trainer.accumulate_grad_batches) ** 2
        self._norms = None

    def on_step_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Adds the step, if no log point has asked for it already."""
        self._add_step(trainer)

    def _add_step(self, trainer: pl.Trainer) -> None:
        """Adds the estimates of a step that was measured and not left out."""
        task = task_of(trainer.lightning_module)
        norm = task.run_state.gradient_norm
        if self._small is None or norm is None:
            return
        small, self._small = self._small.to(self._sums), None
        big = norm.detach().to(self._sums) ** 2
        derived, micro_batches = task.derived, trainer.accumulate_grad_batches
        tokens = derived.per_device * derived.sequence
        pair = estimates(small, big, tokens, tokens * micro_batches * derived.data_ranks)
        found = torch.stack([*pair, torch.ones_like(big)])
        # Guard leaves no norm of a step that it skips.
        self._sums += torch.where(big > 0, found, torch.zeros_like(found))

    # --- at a log point ---------------------------------------------------------------------------

    def take(self) -> Tensor:
        """(3,) sums of |G|^2 and tr C, and how many, since the last log point."""
        assert self._trainer is not None, "it rides since training began"
        self._add_step(self._trainer)
        taken, self._sums = self._sums, torch.zeros_like(self._sums)
        return taken

    def metrics(self, summed: Sequence[float]) -> dict[str, float]:
        """Means over steps and ranks, and the noise scale where both averages are positive."""
        gradient, trace, count = summed
        if not count:
            return {}
        means = [gradient / count, trace / count]
        keep = self.smoothing
        self._smoothed = [
            keep * old + (1 - keep) * new for old, new in zip(self._smoothed, means, strict=True)
        ]
        found = {"noise/gradient_squared": means[0], "noise/trace": means[1]}
        if min(self._smoothed) > 0:
            found["noise/scale_tokens"] = self._smoothed[1] / self._smoothed[0]
        return found

    def state_dict(self) -> dict[str, Any]:
        """The averages and the open sums of all ranks; collective over them, as saving is."""
        sums = self._sums.clone()
        if self._trainer is not None:
            require_strategy(self._trainer.strategy).reduce(sums, reduce_op="sum")
        return {"smoothed": self._smoothed, "open": sums.tolist()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on with both."""
        self._smoothed = list(state_dict["smoothed"])
        self._place(torch.tensor(state_dict["open"], dtype=torch.float64))

    def _place(self, sums: Tensor) -> None:
        """On the device, of one rank: those of a checkpoint are sums over all."""
        self._sums = sums
        if self._trainer is not None:
            self._sums = sums.to(task_of(self._trainer.lightning_module).run_state.sums)
            if not self._trainer.is_global_zero:
                self._sums.zero_()
