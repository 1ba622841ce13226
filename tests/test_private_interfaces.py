"""What ARCHITECTURE.md lists as private interfaces still exists and means what we rely on.

An upgrade of Lightning, torch or DeepSpeed that renames one of them fails here, by name, and not
somewhere in a run. ``test_lightning_shortcuts.py`` compares those that
``model/lightning_shortcuts.py`` replaces.
"""

from __future__ import annotations

import importlib
import inspect
import signal
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from jsonargparse._common import parsing_settings
from jsonargparse._parameter_resolvers import get_signature_parameters
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.strategies import DeepSpeedStrategy, ModelParallelStrategy
from lightning.pytorch.trainer import call
from lightning_utilities.core.imports import RequirementCache
from torch.distributed.checkpoint import FileSystemReader, planner_helpers, utils
from torch.distributed.tensor._sharding_prop import ShardingPropagator


@pytest.fixture
def trainer() -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        max_steps=3,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def test_the_broadcast_of_a_signal_belongs_to_the_loop_and_can_be_replaced(
    trainer: pl.Trainer,
) -> None:
    loop: Any = trainer.fit_loop.epoch_loop
    assert "received_sigterm" in inspect.getsource(type(loop)._broadcast_sigterm_tensor)
    called = []
    loop._broadcast_sigterm_tensor = lambda: called.append(1)
    loop._broadcast_sigterm_tensor()
    assert called == [1]


def test_progress_of_the_loops_has_the_keys_that_a_resume_sets(trainer: pl.Trainer) -> None:
    trainer.fit(BoringModel())
    state = trainer.fit_loop.state_dict()
    batches = state["epoch_loop.batch_progress"]
    assert set(batches["total"]) == {"ready", "started", "processed", "completed"}
    assert batches["total"]["completed"] == batches["current"]["completed"] == 3
    assert set(state["epoch_progress"]["total"]) == {"ready", "started", "processed", "completed"}
    optimizer = state["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
    assert optimizer["step"]["total"] == {"ready": 3, "completed": 3}
    assert state["epoch_loop.state_dict"]["_batches_that_stepped"] == 3
    trainer.fit_loop.load_state_dict(state)
    assert trainer.global_step == 3


def test_state_of_callbacks_is_gathered_and_given_back(trainer: pl.Trainer) -> None:
    class Counter(pl.Callback):
        count = 4

        def state_dict(self) -> dict[str, Any]:
            return {"count": self.count}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            self.count = state_dict["count"]

    counter = Counter()
    trainer.callbacks.append(counter)
    stored = call._call_callbacks_state_dict(trainer)
    counter.count = 0
    call._call_callbacks_load_state_dict(trainer, {"callbacks": stored})
    assert counter.count == 4


def test_lightning_can_be_kept_from_handling_signals(trainer: pl.Trainer) -> None:
    before, seen = signal.getsignal(signal.SIGTERM), []
    connector: Any = trainer._signal_connector
    assert "SIGTERM" in inspect.getsource(type(connector).register_signal_handlers)
    connector.register_signal_handlers = lambda: seen.append(signal.getsignal(signal.SIGTERM))
    trainer.fit(BoringModel())
    assert seen == [before]
    assert signal.getsignal(signal.SIGTERM) == before


def test_an_iteration_that_stops_ends_a_validation_and_nothing_else(trainer: pl.Trainer) -> None:
    class Breaks(pl.Callback):
        batches = ends = 0

        def on_validation_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            self.batches += 1
            trainer.sanity_checking = True
            raise StopIteration

        def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
            self.ends += trainer.sanity_checking

    breaks = Breaks()
    trainer.callbacks.append(breaks)
    trainer.fit(BoringModel())
    assert (breaks.batches, breaks.ends, trainer.global_step) == (1, 1, 3)


def test_the_parser_reads_signatures_and_keeps_its_settings_in_one_place() -> None:
    class Base:
        def __init__(self, width: int, name: str = "x") -> None: ...

    class Derived(Base):
        def __init__(self, depth: int = 1, **kwargs: Any) -> None:
            super().__init__(**kwargs)

    found = {p.name: (p.annotation, p.default) for p in get_signature_parameters(Derived)}
    nothing = inspect.Parameter.empty
    assert found == {"depth": (int, 1), "width": (int, nothing), "name": (str, "x")}
    assert "import_path_verdicts" in parsing_settings


def test_what_lean_imports_replaces() -> None:
    assert importlib.import_module("torchmetrics.utilities.plot").plt
    assert "requirement" in vars(RequirementCache("matplotlib"))
    assert torch.optim.Optimizer.add_param_group.__wrapped__


def test_sizes_of_the_device_mesh_are_read_from_these_attributes() -> None:
    source = inspect.getsource(ModelParallelStrategy.setup_environment)
    assert "self._data_parallel_size" in source
    assert "self._tensor_parallel_size" in source


@pytest.mark.skipif(torch.cuda.is_available(), reason="a question of CPUs")
def test_deepspeed_compiles_nothing_on_a_cpu() -> None:
    from llm_train.trainer.strategy.zero_config import import_deepspeed

    import_deepspeed("cpu")
    backend = importlib.import_module("deepspeed.comm.torch")
    builder = backend.get_accelerator().create_op_builder("ShareMemCommBuilder")
    assert builder is not None  # otherwise nothing is left to switch off
    assert backend.build_shm_op() is None


def test_deepspeed_strategy_has_the_methods_that_are_overridden() -> None:
    for name in (
        "setup_environment",
        "setup_distributed",
        "_init_deepspeed_distributed",
        "_setup_model_and_optimizer",
        "_init_config_if_needed",
    ):
        assert callable(getattr(DeepSpeedStrategy, name)), name
    # trainer/strategy/zero.py takes this division back.
    loop = inspect.getsource(pl.loops.optimization.automatic.ClosureResult)
    assert "normalize" in loop


def test_zero_optimizers_have_the_attributes_that_say_where_parameters_lie() -> None:
    from deepspeed.runtime.zero import stage3, stage_1_and_2

    used = {
        stage_1_and_2: (
            "self.single_partition_of_fp32_groups",
            "self.bit16_groups",
            "link_hp_params",
            "def update_lp_params",
        ),
        stage3: (
            "self.fp32_partitioned_groups_flat",
            "self.fp16_groups",
            "self.grad_position[",
            "self.sub_group_to_group_id",
            "def get_param_id",
            "def _reassign_or_swap_out_partitioned_parameters",
            "def checkpoint_event_prologue",
            "def checkpoint_event_epilogue",
        ),
    }
    for module, names in used.items():
        source = inspect.getsource(module)
        assert [name for name in names if name not in source] == []


def test_checkpoint_planners_ask_a_tensor_for_its_parts_by_these_methods() -> None:
    source = inspect.getsource(planner_helpers) + inspect.getsource(utils)
    for name in ("__create_write_items__", "__create_chunk_list__", "__get_tensor_shard__"):
        assert name in source


def test_the_metadata_of_a_checkpoint_is_read_by_one_method() -> None:
    assert "pickle" in inspect.getsource(FileSystemReader.read_metadata)


def test_dtensor_learns_shapes_in_one_method() -> None:
    assert "fake_mode" in inspect.getsource(ShardingPropagator._propagate_tensor_meta_non_cached)


def test_apply_is_what_moves_and_casts_pass() -> None:
    seen = []

    class Watched(torch.nn.Linear):
        def _apply(self, fn: Any, recurse: bool = True) -> Any:
            seen.append(1)
            return super()._apply(fn, recurse)

    module = Watched(1, 1, device="meta")
    module.to_empty(device="cpu").to(torch.float64).bfloat16().cpu()
    assert len(seen) == 4
