"""Watches loss and gradient norm of every step, and acts on what is not finite or a spike.

All ranks read the same sums, so that they act alike without another word. What is unusual is when
they read: to leave out an update the host must know the step's numbers before it is made, and has
to wait for the device once a step. ``log`` leaves nothing out and waits at log points only.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from llm_train.checkpoint import manifest
from llm_train.context import Context, Part
from llm_train.data.module import data_of
from llm_train.errors import LLMTrainError, check_at_least, check_choices
from llm_train.run_state import TaskBase, task_of
from llm_train.runtime.ledger import DEVICE
from llm_train.runtime.sharded import of_all_ranks
from llm_train.trainer.callbacks.spikes import Curve
from llm_train.trainer.logger.base import log_event
from llm_train.trainer.strategy.base import require_strategy

Policy = Literal["log", "skip", "rollback"]
_RECENT = 1000  # steps in which ``limit`` counts
# Clean norms have heavy tails: of 1,072 steps of configs/quickstart.yaml five lay more than
# 6 standard deviations above the line, the highest 12 above it and at 1.9 times its value.
_USUAL_NORMS = 3.0


class Guard(Part, pl.Callback):
    """Finds steps whose loss or gradient is not finite or a spike, on all ranks alike.

    A spike lies more than ``sigmas`` standard deviations above the line through the last ``window``
    steps (``spikes``). Each becomes an event that names the step's samples, by their position in
    the order of the data, and for what is not finite the first module whose output is not.

    Args:
        policy: log writes the event only (spike); skip leaves out the update, on all ranks
            (skipped); rollback also takes the run back to an earlier checkpoint and passes over the
            data in between (rollback). skip and rollback wait for the device once a step.
        sigmas: standard deviations above the line that make a spike of a loss, and of a gradient
            norm if it is 3 times the usual, too; 0 looks only for what is not finite.
        window: steps that the line goes through; nothing is a spike before there are as many. With
            fewer than 64 clean steps are found, too.
        limit: skips or rollbacks in 1,000 steps that a run survives; one more ends it.
        before: rollback goes back at least so many steps, where a checkpoint allows it (PaLM,
            arXiv:2204.02311, section 5.1: about 100).
        beyond: rollback passes over the data of so many steps after the spike's, too (PaLM passed
            over 200 to 500 in all).
    """

    policy: Policy

    def __init__(
        self,
        policy: Policy = "skip",
        sigmas: float = 6.0,
        window: int = 128,
        limit: int = 10,
        before: int = 100,
        beyond: int = 100,
    ) -> None:
        self.policy = policy
        self.sigmas = sigmas
        self.window = window
        self.limit = limit
        self.before = before
        self.beyond = beyond
        prefix = "Guard."
        check_choices(self, prefix)
        check_at_least(self, 0, "sigmas", "before", "beyond", prefix=prefix)
        check_at_least(self, 1, "limit", prefix=prefix, hint="; 10 is usual")
        check_at_least(self, 6, "window", prefix=prefix, hint=" steps; 128 is usual")
        factors = {"train/loss": 1.0, "grad/norm": _USUAL_NORMS}
        self._curves = {name: Curve(window, factor=factor) for name, factor in factors.items()}
        self._acted: list[int] = []  # steps that were skipped or gone back from
        self._back_from = 0  # the step to go back from before the next one begins
        self._sums = torch.zeros(2)  # of before the step
        self._batches: list[Tensor] = []  # of the step
        self._unread: dict[int, Tensor] = {}  # nats, tokens and norm by step, on the device
        self._read: Callable[[], None] = lambda: None  # there is nothing before training starts

    def problems(self, context: Context) -> Iterator[str]:
        """Somebody else updates, or there is nothing to go back to."""
        update = f"that {context.strategy.name} makes with model.update={context.update}"
        if self.policy == "skip" and (context.strategy.flattens or context.update == "backward"):
            yield (
                f"trainer.callbacks: Guard.policy=skip cannot leave out updates {update}; write "
                "rollback or log, or use ddp or fsdp with model.update=step"
            )
        if self.policy == "rollback" and not context.lengths["checkpoint.every"].count:
            yield "trainer.callbacks: Guard.policy=rollback needs checkpoints; set checkpoint.every"

    # --- its own state ----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Both curves, and when it acted or has yet to; collective over ranks, as saving is."""
        self._read()
        curves = {name: list(curve) for name, curve in self._curves.items()}
        return {"curves": curves, "acted": self._acted, "back_from": self._back_from}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Of a longer or shorter window, what there is of the newest."""
        for name, values in state_dict["curves"].items():
            self._curves[name].clear()
            self._curves[name].extend(values)
        self._acted, self._back_from = list(state_dict["acted"]), state_dict["back_from"]

    # --- a step -----------------------------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Asks to be called when the norm of a step is known."""
        task = task_of(pl_module)
        self._read = partial(self._read_steps, trainer, task)
        task.run_state.judge = partial(self._judge, trainer, task)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Tensor, batch_idx: int
    ) -> None:
        """Remembers the micro-batches of a step, and the sums of before."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            task = task_of(pl_module)
            if self._back_from:
                self._go_back(trainer, task, batch)
            self._batches = []
            self._sums = task.run_state.sums.clone()
        self._batches.append(batch)

    def _judge(self, trainer: pl.Trainer, task: TaskBase) -> None:
        run, step = task.run_state, trainer.global_step + 1
        assert run.gradient_norm is not None, "whoever clips calls this when the norm is known"
        norm = run.gradient_norm.detach().to(run.sums).reshape(1)
        self._unread[step] = torch.cat([run.sums - self._sums, norm])
        at_log_point = step % task.derived.log_every == 0 or step == task.derived.total_steps
        if self.policy != "log" or at_log_point:
            self._read()

    def _read_steps(self, trainer: pl.Trainer, task: TaskBase) -> None:
        """One reduction and one copy for all steps that nobody has looked at."""
        if not self._unread:
            return
        steps, values = zip(*self._unread.items(), strict=True)
        self._unread = {}
        found = trainer.strategy.reduce(torch.stack(values), reduce_op="sum")
        with task.run_state.ledger.during(DEVICE):
            summed = found.tolist()
        for step, (nats, tokens, norm) in zip(steps, summed, strict=True):
            numbers = {
                "train/loss": nats / max(tokens, 1.0),
                "grad/norm": norm / trainer.world_size,
            }
            finite = all(map(math.isfinite, numbers.values()))
            if reason := self._spike(numbers) if finite else _shown(numbers):
                self._act(trainer, task, step, reason, finite)

    def _spike(self, numbers: dict[str, float]) -> str:
        """What is too high, in words; "" if nothing is."""
        found = ""
        for name, value in numbers.items():
            high = self._curves[name].deviations(value)
            self._curves[name].append(value)
            if self.sigmas and high > self.sigmas:
                found = found or f"{_shown({name: value})} is {high:.1f} deviations above the usual"
        return found

    def _act(
        self, trainer: pl.Trainer, task: TaskBase, step: int, reason: str, finite: bool
    ) -> None:
        data, run = data_of(trainer), task.run_state
        start, end = (data.consumed_at(at, task.derived) for at in (step - 1, step))
        samples = [start, end - 1]
        if self.policy == "log":
            log_event(trainer.loggers, "spike", step, reason=reason, samples=samples)
            return
        parameters = [p for p in task.network.parameters() if p.grad is not None]
        # Without gradients the update has been made, and would itself be what is found.
        where = self._first_module(trainer, task) if parameters and not finite else ""
        for parameter in parameters:
            parameter.grad = None  # an optimizer passes over parameters that have none
        run.sums.copy_(self._sums)
        run.gradient_norm = run.sums.new_zeros(())
        run.skipped += 1
        log_event(trainer.loggers, "skipped", step, reason=reason, samples=samples, module=where)
        self._acted = [*(earlier for earlier in self._acted if earlier > step - _RECENT), step]
        if len(self._acted) > self.limit:
            first = f"; first module whose output is not finite: {where}" if where else ""
            raise LLMTrainError(
                f"step {step}: {reason}, and Guard has acted {self.limit} times in {_RECENT} steps "
                f"already{first}; lower model.optimizer's learning rate or raise Guard's limit"
            )
        if self.policy == "rollback":
            self._back_from = step

    def _go_back(self, trainer: pl.Trainer, task: TaskBase, batch: Tensor) -> None:
        """To the data after the spike's, with the weights of before; saves what it finds there."""
        # Here, because a verb that trains nothing can do without what it imports.
        from llm_train.checkpoint.callback import Checkpoints

        task.run_state.watch.mark("going back", trainer.global_step)
        spike, self._back_from = self._back_from, 0
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # not declared
        (saver,) = (callback for callback in callbacks if isinstance(callback, Checkpoints))
        acted, path = self._acted, saver.earlier(spike, self.before)
        consumed = data_of(trainer).consumed_at(spike + self.beyond, task.derived)
        first = manifest.read(path).metadata["data"]["consumed"]
        saver.restore(trainer, path, batch, consumed=consumed)
        self._acted = acted
        samples = [first, consumed - 1]
        log_event(trainer.loggers, "rollback", trainer.global_step, spike=spike, samples=samples)
        saver.save(trainer, task.run_state)

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
            for batch in self._batches:
                task.score(batch)
        for handle in handles:
            handle.remove()
        strategy.reshard()
        first = f"{found[0]} on rank {trainer.global_rank}" if found else ""
        return next(filter(None, of_all_ranks(first)), "")


def _shown(numbers: Mapping[str, float]) -> str:
    return ", ".join(f"{name}={value:.4g}" for name, value in numbers.items())
