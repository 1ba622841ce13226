"""The command line, in which one number goes wrong: corrupt_worker.py WHAT RANK STEP fit ..."""

from __future__ import annotations

import math
import os
import sys
from typing import Any

import lightning.pytorch as pl
import torch

from llm_train.cli import main
from llm_train.run import memory
from llm_train.runtime.sharded import local_part
from llm_train.testing.attach import attached


class Corrupt(pl.Callback):
    """Changes one number of a rank after a step: weight, moment (both to inf), or bit.

    ``spike`` makes all weights of all ranks a hundred times as large, if the step's data are those
    that it has in a run that never went back. ``memory`` runs out of it in the step after, unless
    a micro-batch is of two samples or less. ``late`` is a rank that a file has not reached.
    """

    def __init__(self, what: str, rank: int, step: int) -> None:
        self.what, self.rank, self.step = what, rank, step

    def on_before_backward(self, trainer: Any, module: Any, loss: Any) -> None:
        here = (trainer.global_step, trainer.global_rank) == (self.step, self.rank)
        if self.what == "memory" and here and trainer.datamodule.share.per_device > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    def on_after_backward(self, trainer: Any, module: Any) -> None:
        """For ``gradient``: NaN in every gradient of this rank."""
        if self.what == "gradient" and (trainer.global_step, trainer.global_rank) == (
            self.step,
            self.rank,
        ):
            for parameter in module.network.parameters():
                if parameter.grad is not None:
                    local_part(parameter.grad).fill_(math.nan)

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int
    ) -> None:
        last = (index + 1) % trainer.accumulate_grad_batches == 0
        if self.what == "spike":
            data = trainer.datamodule
            there = self.step * data.share.samples_per_step
            consumed = data.consumed_at(self.step, module.derived)
            if last and (trainer.global_step, consumed) == (self.step, there):
                for parameter in module.network.parameters():
                    local_part(parameter.detach()).mul_(100)
            return
        if (trainer.global_step, trainer.global_rank, last) != (self.step, self.rank, True):
            return
        if self.what in ("gradient", "memory", "late"):
            return
        wrapped = trainer.optimizers[0]
        (state, *_) = getattr(wrapped, "optimizer", wrapped).state.values()
        weight = next(module.network.parameters())
        target = state["exp_avg_sq"] if self.what == "moment" else weight
        number = local_part(target.detach()).view(-1)[:1]
        if self.what == "bit":
            number.view(torch.int32).bitwise_xor_(1 << 22)
        else:
            number.fill_(math.inf)


if __name__ == "__main__":
    what, rank, step, *arguments = sys.argv[1:]
    if what == "late" and os.environ.get("RANK") == rank:
        memory.fitted = lambda settings: settings
    with attached(Corrupt(what, int(rank), int(step))):
        main(arguments)
