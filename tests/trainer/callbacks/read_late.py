"""Runs the command line as on a GPU, and reports when each sample was published."""

from __future__ import annotations

import sys
from typing import Any

import lightning.pytorch as pl

from llm_train.cli import main
from llm_train.run import trainer as assembly
from llm_train.trainer.callbacks import Metrics


class Late(Metrics):
    """Reads one interval late, as on a GPU."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._late = True

    def _flush(self, trainer: pl.Trainer, task: Any) -> None:
        pending = self._pending
        super()._flush(trainer, task)
        if pending is not None:
            sys.stderr.write(f"published {pending.step} at {trainer.global_step}\n")


if __name__ == "__main__":
    assembly.Metrics = Late
    main(sys.argv[1:])
