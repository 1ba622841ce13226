"""Adds a callback to the runs of the command line in this process: no YAML can hold an object."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import lightning.pytorch as pl

from llm_train.run import training


@contextmanager
def attached(callback: pl.Callback, *, first: bool = True) -> Iterator[None]:
    """Every Trainer built inside the block has ``callback``, before all others or after them."""
    build = vars(training)["build_trainer"]

    def with_callback(*args: Any, **kwargs: Any) -> pl.Trainer:
        trainer: pl.Trainer = build(*args, **kwargs)
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        callbacks.insert(0 if first else len(callbacks), callback)
        return trainer

    with mock.patch.object(training, "build_trainer", with_callback):
        yield
