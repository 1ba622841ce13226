"""Holds back what importing torchao says about kernels and names that do not concern us."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

# Loggers that speak at import: of kernels that this host lacks, and of a deprecated registration.
_TALKATIVE = ("torchao", "torch.utils._pytree")


@contextmanager
def quiet() -> Iterator[None]:
    """To be held over the first import of torchao."""
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
