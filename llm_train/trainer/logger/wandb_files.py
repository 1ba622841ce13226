"""What a run sends to Weights & Biases besides numbers, and the id that it keeps."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wandb import Run


def log_samples(run: Run, step: int, samples: list[Mapping[str, str]]) -> None:
    """A table of prompts and what was written after them."""
    import wandb

    if step >= run.step:
        rows = [[step, each["prompt"], each["text"]] for each in samples]
        table = wandb.Table(columns=["step", "prompt", "text"], data=rows)
        run.log({"samples": table, "trainer/step": step}, step=step)


def log_artifact(run: Run, directory: Path) -> None:
    """What the run directory holds, and where its newest checkpoint lies."""
    import wandb

    artifact = wandb.Artifact(f"run-{run.id}", type="model")
    for name in ("config.yaml", "derived.json", "report.html"):
        if (directory / name).is_file():
            artifact.add_file(str(directory / name), policy="immutable")  # without a copy
    for newest in sorted((directory / "checkpoints").glob("step-*"))[-1:]:
        artifact.add_reference(newest.absolute().as_uri(), name=newest.name, checksum=False)
    run.log_artifact(artifact)


def stable_id(path: Path) -> str:
    """The id kept in ``path``, chosen at the first start."""
    if not path.exists() or not path.read_text().strip():
        path.write_text(secrets.token_hex(4) + "\n")
    return path.read_text().strip()
