"""What a run asks of a logger beyond Lightning's interface: where to write, and what happened.

A user may also name one of Lightning's own loggers, which knows neither. The two functions are the
only place that tells them apart, so that a run addresses all of its loggers in one call.
"""

from collections.abc import Iterable
from pathlib import Path

from lightning.pytorch.loggers import Logger

from llm_train.context import Part


class RunLogger(Part, Logger):
    """A logger that writes into a run directory and may record events alongside metrics.

    Args:
        directory: where files are written; "": the run directory.
    """

    def __init__(self, directory: str = "") -> None:
        super().__init__()
        self._directory = directory

    def attach(self, run_dir: Path) -> None:
        """Tells the run directory; this has no effect when a directory was configured."""
        self._directory = self._directory or str(run_dir)

    @property
    def directory(self) -> Path:
        """Where files are written."""
        assert self._directory, "attach() comes before the first record"
        return Path(self._directory)

    @property
    def save_dir(self) -> str | None:
        """The directory, for Lightning."""
        return self._directory or None

    def log_event(self, name: str, step: int, **details: object) -> None:
        """Records that something happened; a logger that only draws curves ignores it.

        Args:
            name: what happened.
            step: optimizer steps done.
            **details: JSON values.
        """


def attach(loggers: Iterable[Logger], run_dir: Path) -> None:
    """Tells the run directory to every logger that asks for it."""
    for logger in loggers:
        if isinstance(logger, RunLogger):
            logger.attach(run_dir)


def log_event(loggers: Iterable[Logger], name: str, step: int, **details: object) -> None:
    """Records an event with every logger that takes events."""
    for logger in loggers:
        if isinstance(logger, RunLogger):
            logger.log_event(name, step, **details)
