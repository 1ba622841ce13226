"""Silences the messages of torchao's import that concern kernels and names that we do not use."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


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
