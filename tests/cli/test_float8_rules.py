"""Each rule about model.float8 prints its line, and a short run resumes without float8."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_train.model.network import sdpa
from llm_train.testing.command import essence, refused, run
from llm_train.testing.configs import tiny, write
from llm_train.trainer.logger.records import read_metrics

pytestmark = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="needs torchao")
ARGS = "model__network__init_args__"
ON_GPU: dict[str, Any] = {
    "trainer__accelerator": "gpu",
    "trainer__devices": 1,
    "trainer__precision": "bf16-mixed",
    "model__compile": "blocks",
}


def file_of(tmp_path: Path, **overrides: Any) -> str:
    settings = {"model__float8": "rowwise", **overrides}
    return str(write(tmp_path / "tiny.yaml", tiny(tmp_path / "run", **settings)))


RULES: dict[str, tuple[dict[str, Any], str]] = {
    "ZeRO": (
        {"trainer__strategy": "zero1"},
        "model.float8=rowwise; write none, or use fsdp",
    ),
    "no compiler on a GPU": (
        {**ON_GPU, "model__compile": "none"},
        "model.float8=rowwise; set model.compile=blocks, or model.float8=none",
    ),
    "fp32 on a GPU": (
        {**ON_GPU, "trainer__precision": "32-true"},
        "trainer.precision=32-true; set trainer.precision to bf16-mixed or bf16-true, or "
        "model.float8=none",
    ),
    "odd micro-batches on a GPU": (
        {**ON_GPU, "batch__sequence": 10, "batch__tokens": 120},
        "batch.per_device=2; make batch.sequence a multiple of 16, or set model.float8=none",
    ),
    "nothing to convert": (
        {f"{ARGS}width": 24, f"{ARGS}mlp_width": 40},
        "model.float8=rowwise; change the network's widths, or set model.float8=none",
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_each_rule(name: str, tmp_path: Path) -> None:
    overrides, message = RULES[name]
    assert essence(refused("check", "-c", file_of(tmp_path, **overrides))) == essence([message])


@pytest.mark.parametrize("overrides", [{}, ON_GPU], ids=["cpu", "gpu"])
def test_check_needs_no_device(overrides: dict[str, Any], tmp_path: Path) -> None:
    assert run("check", "-c", file_of(tmp_path, **overrides)).code == 0


def test_without_torchao(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, package=None: None if name == "torchao" else real(name, package),
    )
    assert refused("check", "-c", file_of(tmp_path)) == [
        "model.float8=rowwise needs the package torchao, which is not installed: "
        "pip install 'llm-train[torchao]'"
    ]


def test_old_devices_are_refused_when_a_run_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device is a simulated A100; fit looks at it, and check does not."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))
    monkeypatch.setattr(sdpa, "chosen", lambda *_: [])  # a real device would be asked
    file = file_of(tmp_path, **ON_GPU)
    assert run("check", "-c", file).code == 0
    assert refused("fit", "-c", file) == [
        "model.float8=rowwise needs compute capability 8.9 or higher, and NVIDIA A100 has 8.0; "
        "set model.float8=none"
    ]


def test_trained_with_continued_without(tmp_path: Path) -> None:
    """The run is emulated under FSDP, then exact on one device; its checkpoint is ordinary."""
    file = file_of(tmp_path, steps=4)
    assert run("fit", "-c", file, "--budget=3 steps", "--trainer.strategy=fsdp").code == 0
    assert run("fit", "-c", file, "--model.float8=none", "--resume", "auto").code == 0
    losses = [
        r["train/loss"]
        for r in read_metrics(tmp_path / "run" / "metrics.jsonl")
        if "train/loss" in r
    ]
    assert len(losses) == 4
