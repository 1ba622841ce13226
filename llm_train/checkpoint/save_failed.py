"""How a save ends that the file system refused, in one line."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from llm_train.errors import CheckpointError


class SaveFailed(CheckpointError):
    """Reports a save that the file system refused, and that may succeed when tried again."""

    @classmethod
    def because(cls, error: BaseException | None, step: int, root: Path) -> SaveFailed:
        """Names the step, the folder, the space that is left there, and the reason.

        Args:
            error: why; None: another process knows.
            step: of the save.
            root: the folder of the checkpoints.
        """
        space = ""
        with suppress(OSError):
            space = f" ({shutil.disk_usage(root).free / 2**20:,.1f} MiB free)"
        return cls(
            f"cannot save step {step} in {root}{space}: {_reason(error)}; "
            "the checkpoints saved before are untouched"
        )


def _reason(error: BaseException | None) -> str:
    """The error of the file system behind what a library raised."""
    while error is not None and not isinstance(error, OSError):
        wrapped = getattr(error, "failures", {})
        inner = next((each[0] for each in wrapped.values()), None) if wrapped else None
        if inner is None and not (error.__cause__ or error.__context__):
            return f"a file could not be written whole ({' '.join(str(error).split())[:200]})"
        error = inner or error.__cause__ or error.__context__
    return "another rank could not write its part" if error is None else str(error)
