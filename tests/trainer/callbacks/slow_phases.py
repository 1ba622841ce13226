"""Runs the command line with one phase made slow, and writes a file when rank 0 is in it.

The arguments are the phase (start-up, step, validation, save or end), the file, and those of the
command line.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from llm_train.checkpoint.store import CheckpointStore
from llm_train.cli import main
from llm_train.testing.attach import attached

SECONDS = 0.5
AT = 3  # the step
phase, file, *arguments = sys.argv[1:] if __name__ == "__main__" else ("", "")


def slow(name: str) -> None:
    if phase == name:
        Path(file).touch()
        time.sleep(SECONDS)


class Slow(pl.Callback):
    def setup(self, *_: Any, **__: Any) -> None:
        slow("start-up")

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == AT:
            slow("step")

    def on_validation_batch_start(self, *_: Any) -> None:
        slow("validation")

    def on_fit_end(self, *_: Any) -> None:
        slow("end")


stage = CheckpointStore.stage


def slow_stage(store: CheckpointStore, step: int) -> Path:
    slow("save")
    return stage(store, step)


if __name__ == "__main__":
    CheckpointStore.stage = slow_stage  # type: ignore[method-assign]
    with attached(Slow()):
        main(arguments)
