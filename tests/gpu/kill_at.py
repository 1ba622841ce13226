"""Runs the command line and kills it with SIGKILL when a step begins: kill_at.py STEP fit ...

A parent that watches the run's metrics may come too late for thirty steps of milliseconds each.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import lightning.pytorch as pl

from llm_train.cli import main
from llm_train.testing.attach import attached


class Kill(pl.Callback):
    """Ends the process as a lost machine would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    with attached(Kill(int(sys.argv[1]))):
        main(sys.argv[2:])
