"""Tests dtypes of weights, state and reductions, and how many reductions a step makes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llm_train.testing.configs import tiny, write
from llm_train.testing.fork_server import ForkServer

WORKER = Path(__file__).with_name("numerics_worker.py")
STEPS = 2
pytestmark = pytest.mark.distributed


def seen(fork_server: ForkServer, folder: Path, **overrides: Any) -> dict[str, Any]:
    """What two ranks saw while they trained."""
    settings = {"checkpoint__every": "0 steps", "model__schedule__init_args__warmup": "1 steps"}
    path = write(folder / "c.yaml", tiny(folder / "run", steps=STEPS, **settings, **overrides))
    log, facts = folder / "log.txt", folder / "facts.json"
    statuses = fork_server.run(str(facts), str(path), ranks=2, log=log, script=WORKER)
    assert statuses == [0, 0], log.read_text()
    found: dict[str, Any] = json.loads(facts.read_text())
    return found


@pytest.mark.parametrize("per_device", [2, 4])
def test_gradients_are_reduced_once_a_step_whatever_the_accumulation(
    per_device: int, fork_server: ForkServer, tmp_path: Path
) -> None:
    """Two blocks and the root make three groups, with 2 micro-batches a step or 1."""
    facts = seen(fork_server, tmp_path, trainer__strategy="fsdp", batch__per_device=per_device)
    assert scatters(facts) == {"torch.float32": 3 * STEPS}


@pytest.mark.parametrize("per_device", [1, 4])
def test_without_resharding_parameters_are_gathered_once_a_step(
    per_device: int, fork_server: ForkServer, tmp_path: Path
) -> None:
    """There are three groups and 4 micro-batches per step or 1; the validation gathers again."""
    strategy = {"class_path": "FSDP", "init_args": {"reshard_after_forward": False}}
    facts = seen(fork_server, tmp_path, trainer__strategy=strategy, batch__per_device=per_device)
    gathers = {k: n for k, n in facts["collectives"].items() if k.startswith("all_gather")}
    assert sum(gathers.values()) == 3 * (STEPS + 1)


@pytest.mark.parametrize(
    ("precision", "weights"), [("bf16-mixed", "torch.float32"), ("bf16-true", "torch.bfloat16")]
)
def test_fsdp_keeps_configured_weights_and_reduces_in_fp32(
    precision: str, weights: str, fork_server: ForkServer, tmp_path: Path
) -> None:
    facts = seen(fork_server, tmp_path, trainer__strategy="fsdp", trainer__precision=precision)
    assert facts["parameters"] == facts["optimizer"] == [weights]
    assert facts["rotary"] == ["torch.float32"]
    assert scatters(facts) == {"torch.float32": 3 * STEPS}


def test_ddp_mixed_keeps_master_weights_in_fp32(fork_server: ForkServer, tmp_path: Path) -> None:
    facts = seen(fork_server, tmp_path, trainer__strategy="ddp", trainer__precision="bf16-mixed")
    assert facts["parameters"] == facts["optimizer"] == facts["rotary"] == ["torch.float32"]


@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_zero_keeps_rotary_tables_in_fp32(
    strategy: str, fork_server: ForkServer, tmp_path: Path
) -> None:
    """DeepSpeed casts what is constructed under it; beyond 256 positions bfloat16 cannot count."""
    settings = {"batch__sequence": 512, "batch__tokens": 2048, "batch__per_device": 1}
    settings["model__network__init_args__max_sequence"] = 512
    strategies = {"trainer__strategy": strategy, "trainer__precision": "bf16-mixed"}
    facts = seen(fork_server, tmp_path, **settings, **strategies)
    assert facts["rotary"] == ["torch.float32"]
    assert facts["rotary_error"] < 1e-6


@pytest.mark.parametrize(
    "strategy",
    ["ddp", "fsdp", "zero3", {"class_path": "LocalSGD", "init_args": {"every": 1}}],
    ids=["ddp", "fsdp", "zero3", "local"],
)
def test_no_step_or_log_point_has_a_barrier_and_a_micro_batch_begins_once(
    strategy: Any, fork_server: ForkServer, tmp_path: Path
) -> None:
    """The host waits for the device in a barrier of NCCL; DeepSpeed counts on hooks of the call."""
    loss = {"class_path": "CausalLM", "init_args": {"ignore_index": 5}}
    settings = {} if strategy == "zero3" else {"model__loss": loss}  # a reduction in each step
    facts = seen(fork_server, tmp_path, trainer__strategy=strategy, **settings)["training"]
    assert facts["barrier"] == 0
    assert facts.get("module", 0) <= facts["batch"]


def scatters(facts: dict[str, Any]) -> dict[str, int]:
    """Returns the number of reduce-scatters by dtype."""
    counts = facts["collectives"].items()
    return {k.split()[1]: n for k, n in counts if k.startswith("reduce_scatter")}
