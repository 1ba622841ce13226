"""Garbage is collected at fixed steps, and the collector is put back when training ends."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.pytorch.demos.boring_classes import BoringModel

from llm_train.trainer.callbacks import GarbageCollection


class Probe(pl.Callback):
    """Records the state of the collector in every step; may fail in one."""

    def __init__(self, fail_at: int = -1) -> None:
        self.fail_at = fail_at
        self.enabled: list[bool] = []
        self.frozen: list[bool] = []
        self.collections: list[int] = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        self.enabled.append(gc.isenabled())
        self.frozen.append(gc.get_freeze_count() > 0)
        self.collections.append(sum(s["collections"] for s in gc.get_stats()))
        if batch_idx == self.fail_at:
            raise RuntimeError("on purpose")


@pytest.fixture
def collector() -> Any:
    was = gc.isenabled()
    gc.enable()
    yield
    gc.unfreeze()
    (gc.enable if was else gc.disable)()


def fit(tmp_path: Path, probe: Probe, every: int) -> None:
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=8,
        callbacks=[GarbageCollection(every), probe],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        default_root_dir=tmp_path,
    )
    trainer.fit(BoringModel())


def test_collections_happen_at_fixed_steps_only(collector: None, tmp_path: Path) -> None:
    probe = Probe()
    fit(tmp_path, probe, every=4)
    assert not any(probe.enabled)
    assert all(probe.frozen)
    first = probe.collections[0]
    assert [n - first for n in probe.collections] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_a_failure_puts_the_collector_back(collector: None, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="on purpose"):
        fit(tmp_path, Probe(fail_at=2), every=4)
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
