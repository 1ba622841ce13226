"""Reads the device's accumulators at log points: one reduction and one copy for everything.

Between log points this callback does integer arithmetic only. At a log point it packs what ranks
must agree on (nats, tokens, the wish to stop) into one tensor, sums it over ranks, and copies it
together with the gradient norm to the host. Ranks therefore decide to stop at the same step without
any collective of their own.
"""

from __future__ import annotations

import math
import resource
import signal
import sys
from typing import Any

import lightning.pytorch as pl
import torch

from llm_train.errors import LLMTrainError


class Metrics(pl.Callback):
    """Computes and logs the metrics of an interval of optimizer steps.

    Args:
        flops_per_token: model FLOPs per target token, attention at its causal cost.
        peak_flops: dense peak of one device in the compute dtype, FLOP/s; 0 where unknown.
    """

    def __init__(self, flops_per_token: float = 0.0, peak_flops: float = 0.0) -> None:
        self.flops_per_token = flops_per_token
        self.peak_flops = peak_flops
        self._steps_at_lap = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Starts the clock when everything is built."""
        pl_module.stopwatch.lap()
        self._steps_at_lap = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Publishes an interval when its last optimizer step is done."""
        step = trainer.global_step
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        if step % pl_module.derived.log_every and step != pl_module.derived.total_steps:
            return
        self._publish(trainer, pl_module, step)

    def _publish(self, trainer: pl.Trainer, pl_module: Any, step: int) -> None:
        nats, tokens, stop, norm = self._read(trainer, pl_module)
        seconds = pl_module.stopwatch.lap()
        steps = step - self._steps_at_lap
        self._steps_at_lap = step
        loss = nats / tokens if tokens else math.nan
        metrics = {
            "train/loss": loss,
            "optimizer/lr": trainer.optimizers[0].param_groups[0]["lr"],
            "grad/norm": norm,
            "progress/tokens": float(step * pl_module.derived.tokens_per_step),
            "memory/peak_gib": peak_memory_gib(trainer.strategy.root_device),
        }
        if steps and seconds > 0:
            per_second = steps * pl_module.derived.tokens_per_step / seconds
            metrics["throughput/tokens_per_s"] = per_second
            if self.peak_flops:
                peak = self.peak_flops * trainer.world_size
                metrics["throughput/mfu"] = per_second * self.flops_per_token / peak
        pl_module.latest.update(metrics)
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=step)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise LLMTrainError(
                f"train/loss={loss}, grad/norm={norm} at step {step}: the run cannot recover "
                "from this; lower "
                "model.optimizer's learning rate or lengthen the warmup, and resume from a "
                "checkpoint before it"
            )
        if step == pl_module.derived.total_steps:
            # Or Lightning would not validate a last step that is no multiple of validate_every.
            trainer.should_stop = True
        elif stop:
            pl_module.stop_signal = pl_module.stop_signal or signal.SIGTERM
            halt(trainer)

    @staticmethod
    def _read(trainer: pl.Trainer, pl_module: Any) -> tuple[float, float, bool, float]:
        sums = pl_module.sums
        packed = torch.cat([sums, sums.new_tensor([float(pl_module.stop_signal != 0)])])
        packed = trainer.strategy.reduce(packed, reduce_op="sum")
        norm = pl_module.gradient_norm
        norm = sums.new_zeros(()) if norm is None else norm.detach().to(sums)
        nats, tokens, stop, norm_value = torch.cat([packed, norm.reshape(1)]).tolist()
        sums.zero_()
        return nats, tokens, stop > 0, norm_value

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Stops the throughput clock."""
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


def peak_memory_gib(device: torch.device) -> float:
    """Peak memory allocated on a CUDA device, or peak resident memory of this process, in GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
