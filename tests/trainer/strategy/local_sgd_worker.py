"""One rank of the local SGD tests: records what it sends and when replicas are equal.

The arguments are a folder for the records, a step to end at (0: none), how to end there (signal:
like SIGTERM, callback: like a Timer, poison: an infinite gradient on rank 1), and those of the
command line.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch.profiler import ProfilerActivity, profile

from llm_train.cli import main
from llm_train.testing.attach import attached


class Recorder(pl.Callback):
    """Starts to record an optimizer step when other work at its start, such as a save, is over."""

    profile: Any = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: Any, batch: Any, index: int
    ) -> None:
        if index % trainer.accumulate_grad_batches == 0:
            self.profile = profile(activities=[ProfilerActivity.CPU])
            self.profile.__enter__()


class Probe(pl.Callback):
    """Inspects each optimizer step when it is over, before anything is logged."""

    def __init__(self, recorder: Recorder, folder: Path, end_at: int, how: str) -> None:
        self.recorder = recorder
        self.folder = folder
        self.end_at = end_at
        self.how = how
        self.rank = int(os.environ.get("RANK", "0"))
        self.steps: dict[int, dict[str, Any]] = {}
        self.fresh: list[bool | None] = []

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        look = lambda network, *_: self.fresh.append(shadows_are_fresh(network))  # noqa: E731
        module.network.register_forward_hook(look)

    def on_before_optimizer_step(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        poisoned = self.how == "poison" and self.rank == 1
        if poisoned and trainer.global_step == self.end_at - 1:
            next(module.network.parameters()).grad.fill_(float("inf"))

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *rest: Any) -> None:
        if (rest[-1] + 1) % trainer.accumulate_grad_batches:
            return
        self.recorder.profile.__exit__(None, None, None)
        names = [event.name for event in self.recorder.profile.events()]
        self.steps[trainer.global_step] = {
            "collectives": Counter(name for name in names if name.startswith("gloo:")),
            "weights": digest(module.network),
            "shadows": None if None in self.fresh else all(self.fresh),
        }
        if trainer.global_step == self.end_at and self.how == "signal":
            module.run_state.watch.ask(signal.SIGTERM)
        elif trainer.global_step == self.end_at and self.how == "callback":
            trainer.should_stop = True

    def on_train_end(self, trainer: pl.Trainer, module: Any) -> None:
        self.folder.mkdir(exist_ok=True)
        (self.folder / f"{self.rank}.json").write_text(json.dumps(self.steps))
        torch.save(module.network.state_dict(), self.folder / f"{self.rank}.pt")


def digest(network: torch.nn.Module) -> str:
    """Returns a hash of every bit of the weights."""
    found = hashlib.sha256()
    for parameter in network.parameters():
        found.update(parameter.detach().float().numpy().tobytes())
    return found.hexdigest()


def shadows_are_fresh(network: torch.nn.Module) -> bool | None:
    """Whether the shadows are those of the weights; None without any."""
    having: list[Any] = [m for m in network.modules() if getattr(m, "shadow", None) is not None]
    same = [torch.equal(m.shadow, m.weight.to(m.shadow.dtype)) for m in having]
    return all(same) if same else None


if __name__ == "__main__":
    folder, end_at, how, *arguments = sys.argv[1:]
    recorder = Recorder()
    probe = Probe(recorder, Path(folder), int(end_at), how)
    with attached(recorder, first=False), attached(probe):
        main(arguments)
