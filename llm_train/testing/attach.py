"""Adds a callback to the runs of the command line in this process: no YAML can hold an object."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl

from llm_train.run import training

run: Any = training  # what is replaced there is not part of its interface


@contextmanager
def attached(callback: pl.Callback, *, first: bool = True) -> Iterator[None]:
    """Every Trainer built inside the block has ``callback``, before all others or after them."""
    build = run.build_trainer

    def with_callback(*args: Any, **kwargs: Any) -> Any:
        trainer: Any = build(*args, **kwargs)
        callbacks: list[pl.Callback] = trainer.callbacks
        callbacks.insert(0 if first else len(callbacks), callback)
        return trainer

    run.build_trainer = with_callback
    try:
        yield
    finally:
        run.build_trainer = build
