"""What a checkpoint holds, for tests that compare checkpoints bit by bit."""

from __future__ import annotations

from pathlib import Path

import torch

from llm_train.checkpoint import dcp


def stored_tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, weights and optimizer state, by key."""
    metas = dcp.keys(checkpoint / "state").items()
    tensors = {key: torch.empty(m.size, dtype=m.properties.dtype) for key, m in metas}
    dcp.read(checkpoint / "state", tensors)
    return tensors


def final_state(run_dir: Path, steps: int) -> dict[str, torch.Tensor]:
    """Every tensor of the checkpoint after ``steps`` steps, which is the run's newest."""
    newest = max((run_dir / "checkpoints").iterdir())
    assert newest.name == f"step-{steps:08d}"
    return stored_tensors(newest)
