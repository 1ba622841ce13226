"""Silences the messages of torchao's import that concern kernels and names that we do not use."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

# At import they report kernels that this host lacks, and a deprecated registration.
_TALKATIVE = ("torchao", "torch.utils._pytree")


@contextmanager
def quiet() -> Iterator[None]:
    """Silences these loggers inside the block, which must contain the first import of torchao."""
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
