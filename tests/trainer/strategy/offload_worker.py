"""One rank of a run that offloads on a CPU, where ``check`` refuses it for having no effect.

DeepSpeed goes through the same code as on a GPU, so this can be tested without one.
"""

from __future__ import annotations

import sys
from typing import Any

import lightning.pytorch as pl

from llm_train.cli import main
from llm_train.testing.attach import attached
from llm_train.trainer.strategy import zero_config


class Offloads(pl.Callback):
    """Checks that DeepSpeed really offloads."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        engine: Any = trainer.optimizers[0]
        if trainer.strategy.stage == 3:
            assert engine.offload_optimizer
            assert engine.offload_param
        else:
            assert engine.cpu_offload
        assert type(engine.optimizer).__name__ == "AdamW"


if __name__ == "__main__":
    rules: Any = zero_config
    rules.offload_problems = lambda given, context: ()
    with attached(Offloads()):
        main(sys.argv[1:])
