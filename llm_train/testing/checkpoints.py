"""What a checkpoint holds, for tests that compare checkpoints bit by bit."""

from pathlib import Path

import torch

from llm_train.checkpoint import dcp


def final_state(run_dir: Path, steps: int) -> dict[str, torch.Tensor]:
    """Every tensor, by key, of the checkpoint after ``steps`` steps, the run's newest."""
    newest = max((run_dir / "checkpoints").iterdir())
    assert newest.name == f"step-{steps:08d}"
    return tensors_of(newest)


def tensors_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint's state by key."""
    metas = dcp.keys(checkpoint / "state").items()
    tensors = {key: torch.empty(m.size, dtype=m.properties.dtype) for key, m in metas}
    dcp.read(checkpoint / "state", tensors)
    return tensors
