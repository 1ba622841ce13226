"""Hides messages of libraries that do not apply here; their real warnings stay."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_ADVICE = (
    "does not have many workers",  # windows of a memory map are read faster than handed over
    "is smaller than the logging interval",  # the last step is always a log point
    "It is recommended to use .self.log.*sync_dist",  # held-out sums are those of all ranks
    "`isinstance.treespec, LeafSpec.` is deprecated",
)


@contextmanager
def quiet() -> Iterator[None]:
    """Silences warnings inside the block, which must contain the first import of torchao.

    It reports kernels that this host lacks, and torch a deprecated registration.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def without_advice() -> Iterator[None]:
    """Hides what Lightning tells everybody who trains: devices, tips, and advice on settings."""
    loggers = [logging.getLogger(f"lightning.{name}") for name in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for advice in _ADVICE:
            warnings.filterwarnings("ignore", f".*{advice}")
        try:
            for logger in loggers:
                logger.setLevel(logging.WARNING)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
