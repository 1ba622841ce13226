"""Hides messages of libraries that do not apply here; their real warnings stay."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_LEVELS = {
    "lightning.pytorch": logging.WARNING,
    "lightning.fabric": logging.WARNING,
    "lightning.pytorch.callbacks": logging.INFO,  # reports of what somebody has named
    "lightning.pytorch.profilers": logging.INFO,
}
_ADVICE = (
    "does not have many workers",  # windows of a memory map are read faster than handed over
    "is smaller than the logging interval",  # the last step is always a log point
    "It is recommended to use .self.log.*sync_dist",  # held-out sums are those of all ranks
    "You're using the WeightAveraging callback",  # which check refuses where layers are sharded
    "GPU available but not used",  # accelerator says which one is
    "Total length of `list` across ranks is zero",  # nothing is held out, which a note says
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
    loggers = {logging.getLogger(name): level for name, level in _LEVELS.items()}
    before = {logger: logger.level for logger in loggers}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", f".*({'|'.join(_ADVICE)})")
        try:
            for logger, level in loggers.items():
                logger.setLevel(level)
            yield
        finally:
            for logger, level in before.items():
                logger.setLevel(level)
