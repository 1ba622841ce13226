"""Predicted against measured, once, when a run has taken its tenth step.

The prediction is made of plain numbers before the run starts; this file knows nothing of how. Bytes
are read from the tensors that live, gradients just before the update, when they are complete. On a
CUDA device the allocator's peak and the time of a step are known as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from llm_train.model.network.linear import HasShadow
from llm_train.model.optimizer.memory import tensor_bytes
from llm_train.runtime.terminal import say, section

STEP = 10
_GIB = 2**30


class Forecast(pl.Callback):
    """Compares a forecast with what is there.

    Args:
        predicted: bytes by ``parameters``, ``copies``, ``gradients``, ``optimizer`` and ``peak``,
            seconds by ``step``; what is absent or 0 is not compared.
    """

    def __init__(self, predicted: Mapping[str, float]) -> None:
        self.predicted = dict(predicted)
        self._gradients = 0
        self._due = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """A resumed run compares at its own tenth step."""
        self._due = trainer.global_step + STEP

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        """Counts gradients while they are complete."""
        if trainer.global_step == self._due - 1:
            parameters = pl_module.network.parameters()
            self._gradients = size(p.grad for p in parameters if p.grad is not None)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Says it once, at the end of the tenth step."""
        if trainer.global_step != self._due:
            return
        self._due = -1
        measured = self._measured(trainer, pl_module)
        rows = {
            name: _row(name, self.predicted[name], measured[name])
            for name in measured
            if self.predicted.get(name) and measured[name]
        }
        if not rows:
            return
        say(section(f"predicted and measured after {STEP} steps, one rank", rows))
        for logger in trainer.loggers:
            if hasattr(logger, "log_event"):
                known = {name: self.predicted[name] for name in rows}
                found = {name: measured[name] for name in rows}
                step = trainer.global_step
                logger.log_event("forecast", step, predicted=known, measured=found)

    def _measured(self, trainer: pl.Trainer, pl_module: Any) -> dict[str, float]:
        network, device = pl_module.network, pl_module.device
        found: dict[str, float] = {
            "parameters": size(network.parameters()),
            "copies": size(
                module.shadow
                for module in network.modules()
                if isinstance(module, HasShadow) and module.shadow is not None
            ),
            "gradients": self._gradients,
            "optimizer": size(_state(trainer.optimizers)),
        }
        if device.type == "cuda":
            found["peak"] = torch.cuda.max_memory_allocated(device)
        rate = pl_module.latest.get("throughput/tokens_per_s")
        if rate:
            found["step"] = pl_module.derived.tokens_per_step / rate
        return found


def size(tensors: Iterable[Tensor]) -> int:
    """Bytes of this rank's part of the tensors."""
    return sum(tensor_bytes(tensor) for tensor in tensors)


def _state(optimizers: Iterable[Any]) -> Iterable[Tensor]:
    for optimizer in optimizers:
        for state in optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))


def _row(name: str, predicted: float, measured: float) -> str:
    """One comparison.

    >>> _row("peak", 3 * 2**30, 2 * 2**30)
    '3.000 GiB predicted, 2.000 GiB measured, +50.0%'
    """
    unit, scale = ("s", 1.0) if name == "step" else ("GiB", float(_GIB))
    if name != "step" and max(predicted, measured) < _GIB / 10:
        unit, scale = "MiB", 2.0**20
    return (
        f"{predicted / scale:,.3f} {unit} predicted, {measured / scale:,.3f} {unit} measured, "
        f"{predicted / measured - 1:+.1%}"
    )
