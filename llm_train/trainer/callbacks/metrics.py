"""Reads the device's accumulators at log points: one reduction and one copy for everything.

Between log points this callback does integer arithmetic only. At a log point it packs what ranks
must agree on (nats, tokens, the wish to stop) into one tensor, sums it over ranks, and copies it
together with the gradient norm to the host. Ranks therefore decide to stop at the same step without
any collective of their own.

On a GPU the copy goes to pinned memory and is read at the *next* log point: the host never waits
for the device to catch up, and what is logged for a step is what that step gave, one interval
later. Validation, checkpoints and the last step read what is pending at once.
"""

from __future__ import annotations

import math
import resource
import sys
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from llm_train.errors import LLMTrainError
from llm_train.runtime.startup import compile_seconds, seconds_since_start
from llm_train.runtime.stopwatch import Lap


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """What a log point found, on its way to the host."""

    step: int
    steps: int
    lap: Lap
    values: Tensor  # (4,): nats, tokens, wish to stop, gradient norm
    learning_rate: float
    memory: dict[str, float]


class Metrics(pl.Callback):
    """Computes and logs the metrics of an interval of optimizer steps.

    Args:
        flops_per_token: model FLOPs per target token, attention at its causal cost.
        full_flops_per_token: the same with attention over all pairs, as nanoGPT and PaLM count.
        peak_flops: dense peak of one device in the compute dtype, FLOP/s; 0 where unknown.
        late: read one interval late; ``None``: on every device but the CPU, which is its own host.
    """

    def __init__(
        self,
        flops_per_token: float = 0.0,
        full_flops_per_token: float = 0.0,
        peak_flops: float = 0.0,
        late: bool | None = None,
    ) -> None:
        self.flops_per_token = flops_per_token
        self.full_flops_per_token = full_flops_per_token
        self.peak_flops = peak_flops
        self.late = late
        self._steps_at_lap = 0
        self._first_step = 0
        self._pending: _Reading | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Starts the clock when everything is built."""
        if self.late is None:
            self.late = trainer.strategy.root_device.type != "cpu"
        pl_module.settle = lambda: self._settle(trainer, pl_module)
        pl_module.stopwatch.lap()
        self._steps_at_lap = self._first_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Takes a reading when the last optimizer step of an interval is done."""
        if (batch_idx + 1) % pl_module.derived.accumulation:
            return
        step = trainer.global_step
        if step == self._first_step + 1:
            self._log_first_step(trainer, pl_module, step)
        last = step == pl_module.derived.total_steps
        if step % pl_module.derived.log_every and not last:
            return
        self._settle(trainer, pl_module)
        self._pending = self._take(trainer, pl_module, step)
        if last or not self.late:
            self._settle(trainer, pl_module)
        if last:
            # Or Lightning would not validate a last step that is no multiple of validate_every.
            trainer.should_stop = True

    def _take(self, trainer: pl.Trainer, pl_module: Any, step: int) -> _Reading:
        sums = pl_module.sums
        stop = torch.full_like(sums[:1], float(pl_module.stop_signal != 0))
        norm = pl_module.gradient_norm
        norm = sums.new_zeros(1) if norm is None else norm.detach().to(sums).reshape(1)
        found = trainer.strategy.reduce(torch.cat([sums, stop, norm]), reduce_op="sum")
        # One number on all ranks where they reduce gradients, and exactly that is then the mean.
        found[3] /= trainer.world_size
        sums.zero_()
        values = found
        if found.device.type == "cuda":
            values = torch.empty_like(found, device="cpu", pin_memory=True)
            values.copy_(found, non_blocking=True)
        lap = pl_module.stopwatch.lap()  # its mark comes after the copy in the stream
        steps, self._steps_at_lap = step - self._steps_at_lap, step
        return _Reading(
            step=step,
            steps=steps,
            lap=lap,
            values=values,
            learning_rate=float(trainer.optimizers[0].param_groups[0]["lr"]),
            memory=memory(trainer.strategy.root_device),
        )

    def _settle(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Publishes the pending reading, on all ranks at the same step."""
        reading, self._pending = self._pending, None
        if reading is None:
            return
        reading.lap.wait()
        nats, tokens, stop, norm = reading.values.tolist()
        loss = nats / tokens if tokens else math.nan
        metrics = {
            "train/loss": loss,
            "optimizer/lr": reading.learning_rate,
            "grad/norm": norm,
            "progress/tokens": float(reading.step * pl_module.derived.tokens_per_step),
            **reading.memory,
            **self._throughput(trainer, pl_module, reading),
        }
        pl_module.latest.update(metrics)
        pl_module.latest_step = reading.step
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=reading.step)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise LLMTrainError(
                f"train/loss={loss}, grad/norm={norm} at step {reading.step}: the run cannot "
                "recover from this; lower "
                "model.optimizer's learning rate or lengthen the warmup, and resume from a "
                "checkpoint before it"
            )
        if stop and reading.step != pl_module.derived.total_steps:
            halt(trainer)

    def _throughput(self, trainer: Any, pl_module: Any, reading: _Reading) -> dict[str, float]:
        seconds = reading.lap.seconds
        if not reading.steps or seconds <= 0:
            return {}
        per_second = reading.steps * pl_module.derived.tokens_per_step / seconds
        per_device = per_second / trainer.world_size
        metrics = {
            "throughput/tokens_per_s": per_second,
            "throughput/tflops_per_s": per_device * self.flops_per_token / 1e12,
        }
        if self.peak_flops:
            metrics["throughput/mfu"] = per_device * self.flops_per_token / self.peak_flops
            full = per_device * self.full_flops_per_token / self.peak_flops
            metrics["throughput/mfu_noncausal"] = full
        return metrics

    def _log_first_step(self, trainer: pl.Trainer, pl_module: Any, step: int) -> None:
        """Records how long it took until the first update had been given to the device."""
        facts = {"seconds": round(seconds_since_start(), 3)}
        if pl_module.construction.compile != "none":
            facts["compile_seconds"] = round(compile_seconds(), 3)
        pl_module.start_up = facts
        for logger in trainer.loggers:
            if hasattr(logger, "log_event"):
                logger.log_event("first_step", step, **facts)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Stops the throughput clock."""
        self._settle(trainer, pl_module)
        self._pause = pl_module.stopwatch.paused()
        self._pause.__enter__()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Logs the held-out results and starts the clock again."""
        self._pause.__exit__(None, None, None)
        held_out = {k: v for k, v in pl_module.latest.items() if k.startswith("val/")}
        if trainer.state.fn == "fit":
            held_out["progress/tokens"] = float(
                trainer.global_step * pl_module.derived.tokens_per_step
            )
        for logger in trainer.loggers:
            logger.log_metrics(held_out, step=trainer.global_step)


def halt(trainer: pl.Trainer) -> None:
    """Ends training after this step, without the validation that Lightning would add."""
    trainer.should_stop = True
    trainer.limit_val_batches = 0


def memory(device: torch.device) -> dict[str, float]:
    """Peak memory so far in GiB: of the device's allocator, or this process's resident memory."""
    if device.type == "cuda":
        return {
            "memory/peak_gib": torch.cuda.max_memory_allocated(device) / 2**30,
            "memory/reserved_gib": torch.cuda.max_memory_reserved(device) / 2**30,
        }
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"memory/peak_gib": peak / 2**30}
