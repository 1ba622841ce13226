"""A run asks the device that it uses, whatever else the machine has."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llm_train.testing import command
from llm_train.testing.configs import tiny, write


@pytest.mark.skipif(
    torch.backends.cuda.is_built() and not torch.cuda.is_available(),
    reason="torch's optimizers ask a driver whether a graph is captured, and it is missing",
)
@pytest.mark.filterwarnings("ignore:GPU available but not used")
def test_a_run_on_cpus_leaves_gpus_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It saves, resumes and measures on a machine that says it has a GPU, and never asks for it."""

    def initialise() -> None:
        raise AssertionError("a run on CPUs initialises CUDA")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "_lazy_init", initialise)
    path = str(write(tmp_path / "c.yaml", tiny(tmp_path / "run", steps=4)))
    assert command.run("fit", "-c", path).code == 0
    assert command.run("fit", "-c", path, "--resume=auto", "--budget=6 steps").code == 0
