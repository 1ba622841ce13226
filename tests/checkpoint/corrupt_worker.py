"""The command line, in which one number goes wrong: corrupt_worker.py WHAT RANK STEP fit ..."""

from __future__ import annotations

import math
import sys
from typing import Any

import lightning.pytorch as pl
import torch

from llm_train.cli import main
from llm_train.runtime.sharded import local_part
from llm_train.testing.attach import attached


class Corrupt(pl.Callback):
    """Changes one number of a rank after a step: weight, moment (both to inf), or bit."""

    def __init__(self, what: str, rank: int, step: int) -> None:
        self.what, self.rank, self.step = what, rank, step

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int
    ) -> None:
        last = (index + 1) % trainer.accumulate_grad_batches == 0
        if (trainer.global_step, trainer.global_rank, last) != (self.step, self.rank, True):
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
    with attached(Corrupt(what, int(rank), int(step))):
        main(arguments)
