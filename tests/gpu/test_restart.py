"""One CUDA device: every strategy learns, is killed in the middle and continues."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import pytest
import torch

from llm_train.testing.configs import losses, part
from llm_train.trainer.logger.records import read_lines

if TYPE_CHECKING:
    from tests.gpu.conftest import Runs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
STEPS, KILLED_AT = 30, 12
OPTIONS: dict[str, str | dict[str, Any]] = {
    **{name: name for name in ("single", "ddp", "fsdp", "zero1", "zero2", "zero3")},
    "fsdp-kept": part("FSDP", reshard_after_forward=False),
    "fsdp-offload": part("FSDP", offload=True),
    "zero2-offload": part("ZeRO", stage=2, offload_optimizer="cpu"),
    "zero3-offload": part("ZeRO", stage=3, offload_optimizer="cpu", offload_parameters="cpu"),
}
# What takes longest comes first, so that nothing is left alone at the end of a parallel run.
CASES = [
    *(("single", how) for how in ("graphs", "network")),
    *((name, "blocks") for name in ("zero3", "zero2", "fsdp", "ddp", "single")),
    *((name, "none") for name in reversed(OPTIONS)),
]


@pytest.mark.parametrize(("strategy", "compiled"), CASES)
def test_every_strategy_learns_and_resumes(
    strategy: str, compiled: str, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that SIGKILL ends, and that is continued, has the losses of an unbroken one."""
    # Or the compiler of each process would choose kernels by timing them, and rounding with them.
    monkeypatch.setenv("TORCHINDUCTOR_DETERMINISTIC", "1")
    settings: dict[str, Any] = {
        "trainer__strategy": OPTIONS[strategy],
        "model__compile": compiled,
    }
    if compiled == "graphs":  # one micro-batch per step
        settings["batch__per_device"] = 8
    ranks = 0 if strategy == "single" else 1
    for name in ("alone", "killed"):
        runs.configure(name, **settings)
    alone = runs.train("alone", ranks=ranks)
    ended = runs.start("killed", script=("kill_at.py", str(KILLED_AT)), ranks=ranks)
    assert ended.returncode == -signal.SIGKILL, ended.stdout + ended.stderr
    assert max(losses(runs.folder / "killed")) <= KILLED_AT
    killed = runs.train("killed", "--resume", "auto", ranks=ranks)
    events = read_lines(runs.folder / "killed" / "metrics.jsonl")
    assert [r["step"] for r in events if r.get("event") == "resume"] in ([5], [10])
    assert list(killed) == list(range(1, STEPS + 1))
    assert killed == pytest.approx(alone, rel=1e-3)
    assert alone[STEPS] < alone[1] - 0.1


@pytest.mark.parametrize(
    ("plain", "offloaded"), [("fsdp", "fsdp-offload"), ("zero2", "zero2-offload")]
)
def test_offloading_changes_where_state_is_and_nothing_else(
    plain: str, offloaded: str, runs: Runs
) -> None:
    # The host's AdamW rounds differently; at ten times the rate that grows to 1e-3 in 30 steps, and
    # with bf16 products to 1 %.
    exact = {
        "trainer__precision": "32-true",
        "device__float32_matmul": "ieee",
        "model__optimizer__init_args__learning_rate": 1e-3,
    }
    found = []
    for name in (plain, offloaded):
        runs.configure(name, trainer__strategy=OPTIONS[name], **exact)
        found.append(runs.train(name))
    assert found[1] == pytest.approx(found[0], rel=1e-6)
