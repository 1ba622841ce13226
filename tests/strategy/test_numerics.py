"""Dtypes of weights, state and reductions, and the number of reductions, seen from inside."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from llm_train.testing.configs import tiny, write
from llm_train.testing.ranks import command, environment

WORKER = Path(__file__).with_name("numerics_worker.py")
STEPS = 2
CASES: dict[str, dict[str, Any]] = {
    "fsdp-accumulating": {"trainer__strategy": "fsdp", "batch__per_device": 2},
    "fsdp-at-once": {"trainer__strategy": "fsdp", "batch__per_device": 4},
    "fsdp-mixed": {"trainer__strategy": "fsdp", "trainer__precision": "bf16-mixed"},
    "fsdp-true": {"trainer__strategy": "fsdp", "trainer__precision": "bf16-true"},
    "ddp-mixed": {"trainer__strategy": "ddp", "trainer__precision": "bf16-mixed"},
}
pytestmark = pytest.mark.distributed
Seen = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """What two ranks saw in each case; all of them in one launch, which is what costs time."""
    folder = tmp_path_factory.mktemp("numerics")
    paths = []
    for name, overrides in CASES.items():
        settings = {"checkpoint__every": "0 steps", "model__schedule__init_args__warmup": "1 steps"}
        config = tiny(folder / name, steps=STEPS, **settings, **overrides)
        paths.append(str(write(folder / f"{name}.yaml", config)))
    launcher = command(ranks=2)[:-2]
    arguments = [*launcher, str(WORKER), str(folder / "facts.json"), *paths]
    done = subprocess.run(arguments, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    facts: Seen = json.loads((folder / "facts.json").read_text())
    return facts


@pytest.mark.parametrize("case", ["fsdp-accumulating", "fsdp-at-once"])
def test_gradients_are_reduced_once_a_step_whatever_the_accumulation(
    case: str, seen: Seen
) -> None:
    """Two blocks and the root make three groups, with 2 micro-batches a step or 1."""
    assert _scatters(seen[case]) == {"torch.float32": 3 * STEPS}


@pytest.mark.parametrize(
    ("case", "weights"), [("fsdp-mixed", "torch.float32"), ("fsdp-true", "torch.bfloat16")]
)
def test_fsdp_keeps_configured_weights_and_reduces_in_fp32(
    case: str, weights: str, seen: Seen
) -> None:
    facts = seen[case]
    assert facts["parameters"] == facts["optimizer"] == [weights]
    assert facts["rotary"] == ["torch.float32"]
    assert _scatters(facts) == {"torch.float32": 3 * STEPS}


def test_ddp_mixed_keeps_master_weights_in_fp32(seen: Seen) -> None:
    facts = seen["ddp-mixed"]
    assert facts["parameters"] == facts["optimizer"] == facts["rotary"] == ["torch.float32"]


def _scatters(facts: dict[str, Any]) -> dict[str, int]:
    counts = facts["collectives"].items()
    return {k.split()[1]: n for k, n in counts if k.startswith("reduce_scatter")}
