"""A run goes back on the course that it took, not on one that it has left."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_train.checkpoint.callback import back_from
from llm_train.checkpoint.store import CheckpointStore
from llm_train.errors import CheckpointError


def save(store: CheckpointStore, *steps: int) -> None:
    for step in steps:
        (store.stage(step) / "weights").write_bytes(b"weights of %d" % step)
        store.commit(step, {})


def test_what_was_left_behind_is_passed_over(tmp_path: Path) -> None:
    """After 300 the run went back to 100 and saved it again: 200 and 300 are of another course."""
    store = CheckpointStore(tmp_path, keep_last=9)
    save(store, 100, 200, 300)
    assert back_from(store, 310, 100).name == "step-00000200"
    assert back_from(store, 310, 400).name == "step-00000100"
    save(store, 100)
    assert back_from(store, 310, 100).name == "step-00000100"
    save(store, 150)
    assert back_from(store, 310, 100).name == "step-00000150"
    (tmp_path / "step-00000150" / "weights").write_bytes(b"damage")
    assert back_from(store, 310, 100).name == "step-00000100"
    with pytest.raises(CheckpointError, match=r"checkpoint\.every"):
        back_from(store, 100, 10)
