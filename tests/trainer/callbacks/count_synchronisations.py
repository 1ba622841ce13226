"""Runs the command line and counts every call that would make the host wait for a device."""

from __future__ import annotations

import collections
import json
import os
import sys
from typing import Any

import lightning.pytorch as pl
import torch

from llm_train.cli import main
from llm_train.testing.attach import attached

WAITING = (
    "item",
    "tolist",
    "cpu",
    "numpy",
    "nonzero",
    "__bool__",
    "__float__",
    "__int__",
    "__index__",
)
counts: collections.Counter[str] = collections.Counter()
switch = {"counting": False}


def watch(name: str) -> None:
    original = getattr(torch.Tensor, name)

    def wrapped(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if switch["counting"]:
            counts[name] += 1
        return original(self, *args, **kwargs)

    setattr(torch.Tensor, name, wrapped)


class Window(pl.Callback):
    """Counts from the first micro-batch on, without validations, which are not part of a step."""

    def on_train_start(self, trainer: Any, *_: Any) -> None:
        # A validation starts a loader and reads its result, before and after its callbacks.
        validation = trainer.fit_loop.epoch_loop.val_loop
        validate = validation.run

        def uncounted() -> Any:
            before, switch["counting"] = switch["counting"], False
            result = validate()
            switch["counting"] = before
            return result

        validation.run = uncounted

    def on_train_batch_start(self, *_: Any) -> None:
        switch["counting"] = True

    def on_train_epoch_end(self, *_: Any) -> None:  # the last save comes after it
        switch["counting"] = False


def main_counted() -> None:
    for name in WAITING:
        watch(name)
    target = sys.argv[1]
    try:
        with attached(Window()):
            main(sys.argv[2:])
    finally:
        with open(f"{target}-{os.environ.get('RANK', '0')}.json", "w") as file:
            json.dump(counts, file)


if __name__ == "__main__":
    main_counted()
