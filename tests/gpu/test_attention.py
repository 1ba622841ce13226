"""The attention kernel asked for is the one that ran: in new processes, with a warm compile cache.

Operators and, on a real device, kernels are read by name from the trace that --profile writes.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from llm_train.testing.ranks import llm_train

if TYPE_CHECKING:
    from tests.gpu.conftest import Runs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

KERNELS = ("cudnn", "flash", "efficient")
PREFERRED = (
    "cudnn"
    if torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0)
    else "flash"
)
# Torch's operators, and in a replayed CUDA graph, which calls none, the kernels by their own names;
# cuDNN's are called flash as well, so flash comes last.
SIGNS = {
    "cudnn": ("_scaled_dot_product_cudnn_attention", "cudnn_generated"),
    "efficient": ("_scaled_dot_product_efficient_attention", "fmha_cutlass"),
    "flash": ("_scaled_dot_product_flash_attention", "flash_fwd", "flash_bwd"),
    "math": ("_scaled_dot_product_attention_math",),
}


def ran(trace: Path) -> set[str]:
    """Kernels of which a trace shows a sign."""
    with gzip.open(trace, "rt", encoding="utf-8") as file:
        names = {event.get("name", "") for event in json.load(file)["traceEvents"]}
    return {
        next((kernel for kernel, signs in SIGNS.items() if any(s in name for s in signs)), "")
        for name in names
    } - {""}


def trained(runs: Runs, name: str, kernel: str, compiled: str) -> dict[int, float]:
    """Losses of a run in a process of its own, in which the kernel that ran was reported."""
    runs.configure(
        name,
        model__attention=kernel,
        model__compile=compiled,
        checkpoint__every="0 steps",
        model__optimizer__init_args__learning_rate=1e-3,  # at 1e-2 rounding grows to 1 %
    )
    curve = runs.train(name, "--profile", ranks=0)
    expected = PREFERRED if kernel == "auto" else kernel
    assert ran(runs.folder / name / "profile" / "trace.json.gz") == {expected}
    derived = json.loads((runs.folder / name / "derived.json").read_text())
    assert derived["network"]["attention"] == expected
    return curve


@pytest.mark.parametrize("compiled", ["none", "blocks"])
def test_each_kernel_runs_where_it_is_asked_for(
    compiled: str, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(runs.folder / "cache"))
    again = ["flash"] if compiled == "blocks" else []  # from the cache
    found = [
        trained(runs, f"{number}-{kernel}", kernel, compiled)
        for number, kernel in enumerate(["auto", *KERNELS, *again])
    ]
    for curve in found[1:]:
        assert curve == pytest.approx(found[0], rel=1e-2)


@pytest.mark.parametrize(
    ("kernel", "overrides"),
    [
        ("efficient", {"model__network__init_args__kv_heads": 1}),
        ("flash", {"model__network__init_args__width": 1024}),  # 512 features a head
        ("cudnn", {"model__network__init_args__width": 40}),  # 20 features a head
    ],
)
def test_a_kernel_that_cannot_is_refused(
    kernel: str, overrides: dict[str, Any], runs: Runs
) -> None:
    runs.configure("refused", model__attention=kernel, **overrides)
    done = llm_train("check", "-c", str(runs.folder / "refused.yaml"), check=False)
    assert done.returncode == 2
    assert f"model.attention={kernel}" in done.stderr
    assert "write auto" in done.stderr
