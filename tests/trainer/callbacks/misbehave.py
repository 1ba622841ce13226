"""Runs the command line with a rank that goes wrong before its micro-batch 8, once.

The arguments are the rank, what it does, and those of the command line.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch

from llm_train.cli import main
from llm_train.errors import DataError
from llm_train.testing.attach import attached

AT = 8
rank, how, *arguments = sys.argv[1:] if __name__ == "__main__" else ("", "")


def refuse(error: Exception) -> None:
    raise error


DEEDS: dict[str, Callable[[], Any]] = {
    "raise": lambda: refuse(ValueError("on purpose")),
    "refuse": lambda: refuse(DataError("data.source is broken; mend it")),
    "exit": lambda: os._exit(0),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "hang": lambda: time.sleep(600),
    "mismatch": lambda: torch.distributed.all_reduce(torch.zeros(7)),
    "group": lambda: torch.distributed.all_reduce(torch.zeros(7), group=groups[0]),
}
groups: list[Any] = []


class Misbehaves(pl.Callback):
    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if how == "group":
            groups.append(torch.distributed.new_group(backend="gloo"))

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, index: int
    ) -> None:
        first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
        if first and index == AT and trainer.global_rank == int(rank):
            DEEDS[how]()


if __name__ == "__main__":
    if how == "parse" and os.environ["RANK"] == rank:
        arguments.append("--seed=x")
    with attached(Misbehaves()):
        main(arguments)
