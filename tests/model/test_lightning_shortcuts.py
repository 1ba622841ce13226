"""Each interface of Lightning that is replaced does what Lightning's own does."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loops import training_epoch_loop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.profilers import PassThroughProfiler
from torch import nn

from llm_train.cli import load_settings
from llm_train.model import lightning_shortcuts as trim_module
from llm_train.model.lightning_shortcuts import NoProfiler, Trimmed, trim
from llm_train.model.network import Transformer
from llm_train.model.optimizer import AdamW
from llm_train.model.schedule import Constant
from llm_train.model.task import Task
from llm_train.run.trainer import build_trainer
from llm_train.testing.configs import tiny, write
from llm_train.trainer.callbacks import GarbageCollection


def _never(*_: object) -> None:
    raise AssertionError("Lightning's own way was taken")


def task() -> Task:
    network = Transformer(vocab_size=8, layers=1, width=4, heads=1, max_sequence=4)
    return Task(network, AdamW(learning_rate=0.1), Constant())


@pytest.fixture
def trainer() -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )


def test_arguments_of_a_training_step_are_those_that_lightning_finds(
    trainer: pl.Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, batch = task(), torch.zeros(1)
    trainer.strategy.connect(module)
    loop = trainer.fit_loop.epoch_loop
    expected = _TrainingEpochLoop._build_kwargs(loop, OrderedDict(), batch, 5)
    trim(trainer)
    with monkeypatch.context() as patch:
        patch.setattr(training_epoch_loop, "is_param_in_hook_signature", _never)
        found = loop._build_kwargs(OrderedDict(), batch, 5)
    assert list(found.items()) == list(expected.items()) == [("batch", batch), ("batch_idx", 5)]


def test_a_run_is_trimmed(tmp_path: Path) -> None:
    settings = load_settings(["-c", str(write(tmp_path / "c.yaml", tiny(tmp_path / "run")))])
    trainer = build_trainer(settings, settings.derive(), [], None)
    assert trainer.fit_loop.epoch_loop._build_kwargs is trim_module._build_kwargs
    assert isinstance(trainer.profiler, NoProfiler)
    assert isinstance(settings.task, Trimmed)
    assert sum(isinstance(each, GarbageCollection) for each in trainer.callbacks) == 1


def test_lightning_still_calls_what_is_replaced() -> None:
    """A renamed method would silently make the replacement useless."""
    advance = inspect.getsource(_TrainingEpochLoop.advance)
    assert "self._build_kwargs(OrderedDict(), batch, batch_idx)" in advance
    assert "lightning_module._on_before_batch_transfer(batch, dataloader_idx=0)" in advance
    assert "self._broadcast_sigterm_tensor()" in advance
    to_device = inspect.getsource(pl.strategies.Strategy.batch_to_device)
    assert "model._apply_batch_transfer_handler(batch" in to_device


def test_a_batch_arrives_as_through_lightning(monkeypatch: pytest.MonkeyPatch) -> None:
    module = task()
    batch = torch.arange(6, dtype=torch.int32).reshape(2, 3)
    device = torch.device("cpu")
    expected = pl.LightningModule._apply_batch_transfer_handler(
        module, pl.LightningModule._on_before_batch_transfer(module, batch), device
    )
    monkeypatch.setattr(pl.LightningModule, "_call_batch_hook", _never)
    found = module._apply_batch_transfer_handler(module._on_before_batch_transfer(batch), device)
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


def test_the_profiler_that_is_not_there_has_lightnings_interface() -> None:
    profiler = NoProfiler()
    assert isinstance(profiler, PassThroughProfiler)
    with profiler.profile("outer") as outer, profiler.profile("inner"):
        assert outer is None
    assert profiler.profile("outer") is profiler.profile("inner")  # no object is made for an action
    names = inspect.signature(NoProfiler.profile).parameters
    assert list(names) == list(inspect.signature(PassThroughProfiler.profile).parameters)


def test_the_short_cut_for_hook_names_is_what_module_would_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = task()
    with monkeypatch.context() as patch:
        patch.setattr(nn.Module, "__setattr__", _never)
        module._current_fx_name = "on_fit_start"
    assert module._current_fx_name == "on_fit_start"
    assert "_current_fx_name" in vars(module)
    module.extra = nn.Linear(1, 1)  # any other attribute goes the usual way
    assert "extra" in dict(module.named_children())
