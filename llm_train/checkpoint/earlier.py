"""Which checkpoint a run goes back to when it leaves out what it has done since."""

from __future__ import annotations

from pathlib import Path

from llm_train.checkpoint import manifest
from llm_train.checkpoint.store import CheckpointStore
from llm_train.errors import CheckpointError


def back_from(store: CheckpointStore, step: int, before: int) -> Path:
    """The newest complete checkpoint at least ``before`` steps before ``step``, else the first.

    What a run that went back once has left behind is passed over: it was committed earlier than a
    checkpoint of an earlier step.

    Raises:
        CheckpointError: there is none.
    """
    found: Path | None = None
    latest = step - before
    for saved, path in store.committed():
        if saved < step and not manifest.problems(path):
            found, step = path, saved
            if step <= latest:
                break
    if found is None:
        raise CheckpointError(
            f"{store.root} holds no checkpoint of before step {step} to go back to; save more "
            "often: checkpoint.every"
        )
    return found
