"""What our loggers offer beyond Lightning's: a run directory, and events of the run."""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from llm_train.context import Part


class RunLogger(Part, Logger, ABC):
    """A logger that writes into the run directory and hears what happens to the run.

    Args:
        directory: where files are written; "": the run directory.
    """

    def __init__(self, directory: str = "") -> None:
        super().__init__()
        self._directory = directory

    @property
    def save_dir(self) -> str | None:
        """The directory, for Lightning."""
        return self._directory or None

    def attach(self, run_dir: Path) -> None:
        """Tells the run directory; without effect when a directory was configured."""
        self._directory = self._directory or str(run_dir)

    def log_event(self, name: str, step: int, **facts: Any) -> None:
        """Is told what happened to the run: ``start``, or ``resume`` from ``step``."""


def ours(loggers: Iterable[Logger]) -> list[RunLogger]:
    """Those that can be told the run directory; Lightning's own have directories of theirs."""
    return [logger for logger in loggers if isinstance(logger, RunLogger)]
