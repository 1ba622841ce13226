"""Each rule about model.compile and model.attention prints its line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llm_train.check import problems
from llm_train.cli.dispatch import load_settings
from llm_train.testing.configs import tiny, write

ON_GPU: dict[str, Any] = {"trainer__accelerator": "gpu", "trainer__devices": 1}
RULES: dict[str, tuple[dict[str, Any], str]] = {
    "one graph under FSDP": (
        {"model__compile": "network", "trainer__strategy": "fsdp"},
        "model.compile=network cannot be one graph under FSDP, whose hooks stand between the "
        "blocks; write model.compile=blocks",
    ),
    "CUDA graphs on a CPU": (
        {"model__compile": "graphs", "batch__per_device": 8},
        "model.compile=graphs has no effect on a CPU, which has no CUDA graphs; write "
        "model.compile=network",
    ),
    "CUDA graphs under DDP": (
        {**ON_GPU, "model__compile": "graphs", "batch__per_device": 8, "trainer__strategy": "ddp"},
        "model.compile=graphs works on one device, not under DDP; write model.compile=blocks",
    ),
    "CUDA graphs with accumulation": (
        {**ON_GPU, "model__compile": "graphs"},
        "model.compile=graphs with 4 micro-batches a step would overwrite the gradients of the one "
        "before; raise batch.per_device until a step is one micro-batch, or write "
        "model.compile=network",
    ),
    "a kernel on a CPU": (
        {"model__attention": "cudnn"},
        "model.attention=cudnn has no effect on a CPU, which has one kernel; remove it",
    ),
    "FlashAttention 3 without its package": (
        {**ON_GPU, "model__attention": "flash3"},
        "model.attention=flash3 needs the package flash_attn_interface, which is not installed; "
        "install FlashAttention 3, or write auto",
    ),
}


def found(tmp_path: Path, overrides: dict[str, Any]) -> list[str]:
    path = write(tmp_path / "tiny.yaml", tiny(tmp_path / "run", **overrides))
    return problems(load_settings(["-c", str(path)]), running=False)


@pytest.mark.parametrize("name", RULES)
def test_one_line(name: str, tmp_path: Path) -> None:
    overrides, line = RULES[name]
    assert found(tmp_path, overrides) == [line]


@pytest.mark.parametrize(
    "overrides",
    [
        {"model__compile": "network"},
        {"model__compile": "network", "trainer__strategy": "ddp", "trainer__devices": 2},
        {**ON_GPU, "model__compile": "graphs", "batch__per_device": 8},
        {**ON_GPU, "model__attention": "flash"},
    ],
)
def test_what_works_is_accepted(overrides: dict[str, Any], tmp_path: Path) -> None:
    assert found(tmp_path, overrides) == []
