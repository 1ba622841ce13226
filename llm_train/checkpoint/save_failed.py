"""How a save ends that the file system refused, in one line."""

from __future__ import annotations

from llm_train.errors import CheckpointError


class SaveFailed(CheckpointError):
    """Reports a save that the file system refused, and that may succeed when tried again."""


def reason_of(error: BaseException | None) -> str:
    """The error of the file system behind what a library raised; None: another process knows."""
    while error is not None and not isinstance(error, OSError):
        wrapped = getattr(error, "failures", {})
        inner = next((each[0] for each in wrapped.values()), None) if wrapped else None
        if inner is None and not (error.__cause__ or error.__context__):
            return f"a file could not be written whole ({' '.join(str(error).split())[:200]})"
        error = inner or error.__cause__ or error.__context__
    return "another rank could not write its part" if error is None else str(error)
