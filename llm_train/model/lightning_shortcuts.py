"""What the Trainer does around every micro-batch that a training step of ours does not need.

Nothing here changes what is computed. Lightning looks up the parameters of ``training_step`` with
``inspect`` for every batch, asks three objects whether they override the hooks that move a batch,
and opens some forty generator contexts for a profiler that is not there. On a small model or a fast
GPU that is time in which no kernel is launched. Each replaced interface has a contract test that
compares it with Lightning's own (``tests/model/test_lightning_shortcuts.py``).
"""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import lightning.pytorch as pl
import torch
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.trainer import trainer as trainer_module
from lightning.pytorch.trainer.connectors.logger_connector.logger_connector import (
    _LoggerConnector,
)
from torch import Tensor

from llm_train.runtime.ledger import DATA_WAIT, Ledger

_NOTHING = nullcontext()


class NoProfiler(PassThroughProfiler):
    """Lightning's own does nothing either, but opens a generator for each of its actions.

    Args:
        ledger: is told when the loop fetches a batch, the one action that starts and stops.
    """

    def __init__(self, ledger: Ledger | None = None) -> None:
        super().__init__()
        self._ledger = ledger or Ledger()
        self._before = ""

    def start(self, action_name: str) -> None:
        """Begins to fetch a batch."""
        if action_name.endswith(".train_dataloader_next"):
            self._before = self._ledger.switch(DATA_WAIT)

    def stop(self, action_name: str) -> None:
        """Has fetched a batch."""
        if action_name.endswith(".train_dataloader_next"):
            self._ledger.switch(self._before)

    def profile(self, action_name: str) -> AbstractContextManager[None]:  # type: ignore[override]
        """One context for all actions."""
        return _NOTHING


class Trimmed:
    """Mixed into a LightningModule, before it: a batch is one tensor and moves by one call."""

    def __setattr__(self, name: str, value: object) -> None:
        """As ``nn.Module``'s, with a short cut for what Lightning writes around each hook.

        Some 46 times a step, and each one would search parameters, buffers and modules.
        """
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def _on_before_batch_transfer(self, batch: Tensor, dataloader_idx: int = 0) -> Tensor:
        return batch

    def _apply_batch_transfer_handler(
        self, batch: Tensor, device: torch.device | None = None, dataloader_idx: int = 0
    ) -> Tensor:
        """From pinned memory this only enqueues the copy."""
        return batch.to(device, non_blocking=True)


class _OncePerStep(_LoggerConnector):
    """Lightning's callbacks ask it before each micro-batch, and would write a record for each."""

    @property
    def should_update_logs(self) -> bool:
        """At the last micro-batch of a training step that is logged."""
        trainer = self.trainer
        ready = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        within = (
            trainer._active_loop is trainer.fit_loop and ready % trainer.accumulate_grad_batches
        )
        return not within and super().should_update_logs


def trim(trainer: pl.Trainer) -> None:
    """Replaces the loop's search for the arguments of ``training_step``, which are always two."""
    loop = trainer.fit_loop.epoch_loop
    loop._build_kwargs = _build_kwargs  # type: ignore[method-assign]
    trainer._logger_connector = _OncePerStep(trainer)


@contextmanager
def no_sanity_check() -> Iterator[None]:
    """Lightning keeps the random state of all GPUs around a sanity check that no run here has.

    For that it would initialise CUDA in a run on CPUs as well.
    """
    names = vars(trainer_module)
    isolate = names["isolate_rng"]
    names["isolate_rng"] = nullcontext
    try:
        yield
    finally:
        names["isolate_rng"] = isolate


def _build_kwargs(
    kwargs: OrderedDict[str, object], batch: object, batch_idx: int
) -> OrderedDict[str, object]:
    kwargs.update(batch=batch, batch_idx=batch_idx)
    return kwargs
