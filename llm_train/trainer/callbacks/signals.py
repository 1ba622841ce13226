"""Signals set a flag; ranks agree at a step boundary; then the run saves and ends.

Lightning's own handler runs a collective inside the signal and its loop broadcasts and reads a
tensor before every micro-batch. Both are replaced: the handler here stores one integer, and the
agreement rides on the reduction of the next log point.

SIGUSR1 is notice of a time limit to come, given by a scheduler that starts the run again if it ends
with 128 + SIGUSR1. It never acts at once; before and after training it is ignored (``cli``), so
that the exit status says truly that a checkpoint newer than the start was saved.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

import lightning.pytorch as pl

from llm_train.run_state import RunState, task_of
from llm_train.trainer.callbacks.base import EachStep
from llm_train.trainer.callbacks.metrics import halt

_AT_ONCE: dict[int, Callable[[int, FrameType | None], object] | signal.Handlers] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
}

_SIGNALS = (*_AT_ONCE, signal.SIGUSR1)

# A scheduler signals the whole job and the launcher passes its copy on: one wish, not two.
_IMPATIENCE_SECONDS = 3.0


class GracefulStop(EachStep):
    """Turns SIGINT, SIGTERM or SIGUSR1 into an orderly end; a later second one acts at once.

    The handlers stay through the last save; Lightning puts back those of before when it tears down.
    """

    def __init__(self) -> None:
        self._run: RunState | None = None
        self._first = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Installs the handlers over Lightning's and removes its broadcast per micro-batch."""
        self._run = task_of(pl_module).run_state
        loop = trainer.fit_loop.epoch_loop
        loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        assert self._run is not None, "the handlers were installed by on_train_start"
        self._run.stop_signal = self._run.stop_signal or number
        if number not in _AT_ONCE:
            return
        self._first = self._first or time.monotonic()
        if time.monotonic() - self._first > _IMPATIENCE_SECONDS:
            # Not Lightning's handler, which would wait for the other ranks inside the signal.
            signal.signal(number, _AT_ONCE[number])
            signal.raise_signal(number)

    def on_step_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Alone, a process need not wait for the next log point."""
        task = task_of(pl_module)
        last = trainer.global_step == task.derived.total_steps
        if task.run_state.stop_signal and not last and trainer.world_size == 1:
            halt(trainer)
