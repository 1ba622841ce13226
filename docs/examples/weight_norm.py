"""A callback: logs the norm of all weights at log points.

What is unusual: it reads nothing from the device between log points, and it logs through the run's
loggers instead of ``self.log``, which costs host time and a synchronisation on every step.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from torch import nn
from torch.distributed.tensor import DTensor


class WeightNorm(pl.Callback):
    """Writes ``weights/norm`` alongside the other metrics.

    Args:
        name: of the metric.
    """

    def __init__(self, name: str = "weights/norm") -> None:
        self.name = name

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Publishes the norm when an optimizer step that is a log point is done."""
        boundary = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if not boundary or trainer.global_step % pl_module.derived.log_every:
            return
        parameters = [parameter.detach() for parameter in pl_module.network.parameters()]
        norm = nn.utils.get_total_norm(parameters)
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        for logger in trainer.loggers:
            logger.log_metrics({self.name: float(norm)}, step=trainer.global_step)
