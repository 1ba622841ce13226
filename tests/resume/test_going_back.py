"""A run that goes back to a checkpoint of its own, without ending, repeats what followed it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from torch import Tensor

from llm_train.checkpoint.callback import Checkpoints
from llm_train.testing.attach import attached
from llm_train.testing.checkpoints import final_state
from llm_train.testing.command import run
from llm_train.testing.configs import tiny, write
from llm_train.trainer.logger.records import read_lines


class GoBack(pl.Callback):
    """Once, when ``at`` steps are done, to the newest checkpoint."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_train_batch_start(
        self, trainer: Any, module: Any, batch: Tensor, batch_idx: int
    ) -> None:
        if trainer.global_step == self.at:
            self.at = -1
            (saver,) = (c for c in trainer.callbacks if isinstance(c, Checkpoints))
            path = saver.writer.store.newest().path
            assert path is not None
            saver.restore(trainer, path, batch)


@pytest.mark.parametrize("workers", [0, 1])
def test_what_followed_is_repeated_bitwise(tmp_path: Path, workers: int) -> None:
    options: dict[str, Any] = {"data__workers": workers, "validate_every": "3 steps"}
    plain = write(tmp_path / "a.yaml", tiny(tmp_path / "a", steps=8, **options))
    config = write(tmp_path / "b.yaml", tiny(tmp_path / "b", steps=8, **options))
    assert run("fit", "-c", str(plain)).code == 0
    with attached(GoBack(at=5)):
        done = run("fit", "-c", str(config))
    assert done.code == 0, done.err
    rows = read_lines(tmp_path / "b" / "metrics.jsonl")
    trained = [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row]
    assert [step for step, _ in trained] == [1, 2, 3, 4, 5, 5, 6, 7, 8]
    assert trained[4] == trained[5]
    assert [row["step"] for row in rows if "val/loss" in row] == [3, 6, 8]
    expected, found = final_state(tmp_path / "a", 8), final_state(tmp_path / "b", 8)
    assert all(found[key].equal(value) for key, value in expected.items())
