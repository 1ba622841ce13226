"""Reads the device's accumulators at log points: one reduction and one copy for everything.

Between log points this callback does integer arithmetic only. At a log point it packs nats, tokens
and the gradient norm into one tensor, sums it over ranks, and copies it to the host.

On a GPU the copy goes to pinned memory and is read at the *next* log point: the host never waits
for the device to catch up, and what is logged for a step is what that step gave, one interval
later. Validation, checkpoints and the last step read what is pending at once.
"""

import math
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean

import lightning.pytorch as pl
import torch
from torch import Tensor

from llm_train.derived import Derived
from llm_train.errors import LLMTrainError
from llm_train.run_state import TaskBase, task_of
from llm_train.runtime.devices import KINDS
from llm_train.runtime.ledger import DEVICE
from llm_train.runtime.startup import compile_seconds, seconds_since_start
from llm_train.runtime.stopwatch import Lap
from llm_train.trainer.callbacks.base import EachStep
from llm_train.trainer.logger.base import log_event
from llm_train.trainer.strategy.base import require_strategy
from llm_train.trainer.strategy.replicas import Copies


@dataclass(frozen=True, kw_only=True)
class _Sample:
    """What a log point found, on its way to the host."""

    step: int
    steps: int  # since the log point before
    lap: Lap
    values: Tensor  # (3 + ...): nats, tokens, gradient norm; of each rider; sums of copies
    riders: list[int]  # how many values each of them has
    known: dict[str, float]  # metrics that the host has without waiting


def uncounted(positions: int, causal: bool = True) -> float:
    """FLOPs of a token where nobody counts them."""
    return 0.0


class Metrics(EachStep):
    """Computes and logs the metrics of an interval of optimizer steps.

    Args:
        flops_per_token: model FLOPs of a target token, as ``Counts`` has them.
        peak_flops: dense peak of one device in the compute dtype, FLOP/s; 0 where unknown.
        compare_replicas: end the run where ranks hold different copies of the same tensor.
    """

    def __init__(
        self,
        flops_per_token: Callable[..., float] = uncounted,
        peak_flops: float = 0.0,
        compare_replicas: bool = False,
    ) -> None:
        self.flops_per_token = flops_per_token
        self.peak_flops = peak_flops
        self.compare_replicas = compare_replicas
        self._late = False  # read one interval late: on every device but a CPU, its own host
        self._steps_at_lap = 0
        self._last_step = 0
        self._pending: _Sample | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Begins the part of a start in which the last callback looks for a checkpoint."""
        task_of(pl_module).run_state.ledger.switch("start_up/restore")

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begins the part in which it loads the checkpoint."""
        task_of(pl_module).run_state.ledger.switch("start_up/restore")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the clock when everything is built."""
        task = task_of(pl_module)
        self._late = trainer.strategy.root_device.type != "cpu"
        task.run_state.flush = lambda: self._flush(trainer, task)
        task.run_state.stopwatch.lap()
        task.run_state.ledger.begin(trainer.global_step)
        self._steps_at_lap = self._last_step = trainer.global_step

    def on_step_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes a sample when the last optimizer step of an interval is done."""
        task = task_of(pl_module)
        step = trainer.global_step
        if not task.run_state.start_up:
            _log_first_step(trainer, task)
        if step <= self._last_step:  # the run went back to an earlier one
            task.run_state.stopwatch.lap()
            self._steps_at_lap = step
        self._last_step = step
        last = step == task.derived.total_steps
        if step % task.derived.log_every == 0 or last:
            self._flush(trainer, task)
            self._pending = self._take(trainer, task)
            if last or not self._late:
                self._flush(trainer, task)
        task.run_state.ledger.step_done(step)
        if last:
            # Or Lightning would not validate a last step that is no multiple of validate_every.
            trainer.should_stop = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What follows is no step."""
        task_of(pl_module).run_state.ledger.switch("end")

    def _take(self, trainer: pl.Trainer, task: TaskBase) -> _Sample:
        sums, norm = task.run_state.sums, task.run_state.gradient_norm
        norm = sums.new_zeros(1) if norm is None else norm.detach().to(sums).reshape(1)
        ridden = [rider.take() for rider in task.run_state.riders]
        packed = [sums, norm, *ridden]
        if (copies := self._copies(trainer)) is not None:
            packed.append(copies.packed(sums.device))
        found = trainer.strategy.reduce(torch.cat(packed), reduce_op="sum")
        # One number on all ranks where they reduce gradients, and exactly that is then the mean.
        found[2] /= trainer.world_size
        sums.zero_()
        values = found
        if KINDS[found.device.type].pinned:
            values = torch.empty_like(found, device="cpu", pin_memory=True)
            values.copy_(found, non_blocking=True)
        lap = task.run_state.stopwatch.lap()  # its mark comes after the copy in the stream
        step = trainer.global_step
        steps, self._steps_at_lap = step - self._steps_at_lap, step
        rate, *others = (float(group["lr"]) for group in trainer.optimizers[0].param_groups)
        known = {
            "optimizer/lr": rate,
            **{f"optimizer/lr_{i}": r for i, r in enumerate(others, start=1) if r != rate},
            "progress/tokens": float(task.derived.tokens(step)),
            **task.run_state.realised(task.derived.samples(step)),
            **memory(trainer.strategy.root_device),
        }
        riders = [values.numel() for values in ridden]
        return _Sample(step=step, steps=steps, lap=lap, values=values, riders=riders, known=known)

    def _flush(self, trainer: pl.Trainer, task: TaskBase) -> None:
        """Publishes the pending sample, on all ranks at the same step."""
        sample, self._pending = self._pending, None
        if sample is None:
            return
        with task.run_state.ledger.during(DEVICE):
            sample.lap.wait()
        nats, tokens, norm, *summed = sample.values.tolist()
        metrics = {"grad/norm": norm, **sample.known}
        loss = nats / tokens if tokens else math.nan
        if not tokens and task.run_state.skipped:
            loss = 0.0  # of no step; all of the interval were left out
        else:
            metrics["train/loss"] = loss
        if tokens < (slots := _slots(sample.step, task.derived)):
            metrics["train/counted"] = tokens / slots
        for rider, count in zip(task.run_state.riders, sample.riders, strict=True):
            metrics |= rider.metrics(summed[:count])
            del summed[:count]
        # Checkpoints keep these and are the same each time, as times and memory are not.
        task.run_state.measured(
            sample.step, {k: v for k, v in metrics.items() if not k.startswith("memory/")}
        )
        metrics |= self._throughput(sample, task.derived)
        task.run_state.latest.update(metrics)
        task.run_state.latest_step = sample.step
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=sample.step)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise LLMTrainError(
                f"train/loss={loss}, grad/norm={norm} at step {sample.step}: the run cannot "
                "recover from this; lower model.optimizer's learning rate or lengthen the warmup, "
                "and resume from a checkpoint before it"
            )
        if (copies := self._copies(trainer)) is not None:
            copies.require_equal(summed, sample.step)

    def _copies(self, trainer: pl.Trainer) -> Copies | None:
        return require_strategy(trainer.strategy).copies() if self.compare_replicas else None

    def _throughput(self, sample: _Sample, derived: Derived) -> dict[str, float]:
        seconds = sample.lap.seconds
        if not sample.steps or seconds <= 0:
            return {}
        tokens = derived.tokens(sample.step) - derived.tokens(sample.step - sample.steps)
        per_second = tokens / seconds
        per_device = per_second / derived.ranks
        steps = range(sample.step - sample.steps, sample.step)
        lengths = list(map(derived.positions, steps))  # they may grow during the run
        causal, full = (
            fmean(self.flops_per_token(each, causal=half) for each in lengths)
            for half in (True, False)
        )
        metrics = {
            "throughput/tokens_per_s": per_second,
            "throughput/tflops_per_s": per_device * causal / 1e12,
        }
        if self.peak_flops:
            metrics["throughput/mfu"] = per_device * causal / self.peak_flops
            metrics["throughput/mfu_noncausal"] = per_device * full / self.peak_flops
        return metrics

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stops the throughput clock."""
        task = task_of(pl_module)
        self._flush(trainer, task)
        task.run_state.stopwatch.pause("validation")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the held-out results and starts the clock again."""
        task = task_of(pl_module)
        task.run_state.stopwatch.resume()
        if trainer.sanity_checking:  # it was broken off
            return
        metrics = dict(task.run_state.held_out)
        if trainer.state.fn == "fit":
            metrics["progress/tokens"] = float(task.derived.tokens(trainer.global_step))
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)


def _slots(step: int, derived: Derived) -> int:
    """Target slots since the log point before, whether they count or not."""
    before = (step - 1) // derived.log_every * derived.log_every
    return derived.tokens(step) - derived.tokens(before)


def _log_first_step(trainer: pl.Trainer, task: TaskBase) -> None:
    """Records how long it took until the first update had been given to the device."""
    task.run_state.start_up = {"seconds": round(seconds_since_start(), 3)}
    if seconds := compile_seconds():
        task.run_state.start_up["compile_seconds"] = round(seconds, 3)
    log_event(trainer.loggers, "first_step", trainer.global_step, **task.run_state.start_up)


def memory(device: torch.device) -> dict[str, float]:
    """Peak memory so far in GiB: of the device's allocator, or this process's resident memory."""
    if KINDS[device.type].peak_memory:
        return {
            "memory/peak_gib": torch.accelerator.max_memory_allocated(device) / 2**30,
            "memory/reserved_gib": torch.accelerator.max_memory_reserved(device) / 2**30,
        }
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"memory/peak_gib": peak / 2**30}
