"""The source of truth about a run: one JSON object per line, appended.

Every record is one ``write`` of one whole line to a file opened for appending: a killed process
leaves whole lines, or a last one without its newline, which the next start removes and the reader
ignores.
"""

import errno
import logging
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only

from llm_train.trainer.logger import records
from llm_train.trainer.logger.base import RunLogger

FILE_NAME = "metrics.jsonl"
_MOST_UNWRITTEN = 1 << 20

_log = logging.getLogger(__name__)


class JSONLMetrics(RunLogger):
    """Appends metrics and events to ``metrics.jsonl``, on rank 0 only.

    Args:
        directory: where the file is written; "": the run directory.
    """

    file_name = FILE_NAME
    require: Callable[[], object] = staticmethod(lambda: None)  # raises once writing must stop
    _checked = False  # whether a line that a kill has torn was looked for
    _unwritten = b""  # lines that the disk did not take

    @property
    def path(self) -> Path:
        """The file written to."""
        return self.directory / self.file_name

    @property
    def name(self) -> str:
        """A fixed name: there is one file per run."""
        return "jsonl"

    @property
    def version(self) -> str:
        """No versions: a resumed run appends."""
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Appends ``{"step", "time", **metrics}``.

        Args:
            metrics: numbers or scalar tensors by name.
            step: optimizer steps done.
        """
        # A tensor becomes a float; a plain number stays what it is.
        numbers = {n: v if isinstance(v, int | float) else float(v) for n, v in metrics.items()}
        self._append({"step": step or 0}, numbers)

    @rank_zero_only
    def log_event(self, name: str, step: int, **details: object) -> None:
        """Appends ``{"event", "step", "time", **details}``.

        Args:
            name: what happened. ``resume`` supersedes records above ``step``, ``start`` all.
            step: optimizer steps done.
            **details: JSON values.
        """
        self._append({"event": name, "step": step}, details)

    @rank_zero_only
    def log_hyperparams(self, params: object, *args: object, **kwargs: object) -> None:
        """Does nothing: the resolved configuration is a file alongside this one."""

    def _append(self, head: records.Record, values: records.Record) -> None:
        self.require()
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        lines = self._unwritten + records.encode({**head, "time": now, **values})
        try:
            self._write(lines)
            self._unwritten = b""
        except OSError as error:  # a full disk must not end a run
            self._checked = False  # what was written of the line is removed first
            if not self._unwritten:
                _log.warning("cannot write %s: %s; its lines wait for space", self.path, error)
            self._unwritten = lines[-_MOST_UNWRITTEN:]

    def _write(self, lines: bytes) -> None:
        if not self._checked:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _remove_torn_line(self.path)
            self._checked = True
        with open(self.path, "ab", buffering=0) as file:
            if file.write(lines) < len(lines):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _remove_torn_line(path: Path) -> None:
    """Cuts the file after its last newline, so that the next line does not join a torn one."""
    if path.exists() and (data := path.read_bytes()) and not data.endswith(b"\n"):
        os.truncate(path, data.rfind(b"\n") + 1)
