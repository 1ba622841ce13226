"""Runs the command line while torch's synchronisation detector raises between log points."""

from __future__ import annotations

import sys
from typing import Any

import lightning.pytorch as pl
import torch

from llm_train.cli import main
from llm_train.testing.attach import attached


class Forbid(pl.Callback):
    """Forbids synchronisation from the second step on, except in the steps of log points."""

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        quiet = step >= 2 and (step + 1) % pl_module.derived.log_every != 0
        torch.cuda.set_sync_debug_mode("error" if quiet else "default")

    def on_train_end(self, *_: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")


if __name__ == "__main__":
    with attached(Forbid()):
        main(sys.argv[1:])
