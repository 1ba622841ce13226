"""Runs the command line and records torch.compile's graphs, breaks and late compilations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch._dynamo.utils import counters

from benchmarks.usage import arguments
from llm_train.cli import main
from llm_train.testing.attach import attached


class Watch(pl.Callback):
    """Records the number of compiled graphs after the second step and after the last one."""

    def __init__(self) -> None:
        self.found: dict[str, int] = {}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Records the numbers after every micro-batch, so that the last one of a step counts."""
        graphs = int(counters["stats"]["unique_graphs"])
        if trainer.global_step <= 2:
            self.found["graphs"] = graphs
        self.found["graph breaks"] = sum(counters["graph_break"].values())
        self.found["compiled after step 2"] = graphs - self.found["graphs"]


if __name__ == "__main__":
    counts, *command = arguments("counts", more="command")
    watch = Watch()
    try:
        with attached(watch):
            main(command)
    finally:
        Path(counts).write_text(json.dumps(watch.found))
