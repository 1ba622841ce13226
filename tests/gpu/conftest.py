"""What the tests for one CUDA device share.

Each test starts processes of its own and takes little of the device, so that many run alongside
each other on one device: ``pytest -m gpu -n 8``.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lightning.fabric.plugins.environments.lightning import find_free_network_port

from llm_train.testing.configs import losses, tiny, write
from llm_train.testing.ranks import environment, launched_as

HERE = Path(__file__).parent
STEPS = 30


class Runs:
    """Tiny runs on the device in one folder, each called by a name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def configure(self, name: str, **overrides: Any) -> None:
        """Writes the configuration of a run; ``overrides`` are those of ``tiny``."""
        settings = {
            "trainer__accelerator": "gpu",
            "trainer__devices": 1,
            "trainer__precision": "bf16-mixed",
            "model__network__init_args__width": 128,
            "model__network__init_args__dropout": 0.0,
            "checkpoint__every": "5 steps",
        }
        config = tiny(self.folder / name, steps=STEPS, **{**settings, **overrides})
        write(self.folder / f"{name}.yaml", config)

    def start(
        self, name: str, *arguments: str, script: tuple[str, ...] = (), ranks: int = 1
    ) -> subprocess.CompletedProcess[str]:
        """Runs ``fit`` in one process, which is told what torchrun tells the only one of its ranks.

        There is no agent, which would take seconds to start and whose death its rank survives.

        Args:
            name: of the run.
            *arguments: further ones of the command line.
            script: a file of this folder and its own arguments, which runs the command line.
            ranks: 0 for a process without a launcher.
        """
        program = [str(HERE / script[0]), *script[1:]] if script else ["-m", "llm_train"]
        launched = launched_as("torchrun", 0, 1, find_free_network_port()) if ranks else {}
        config = ["fit", "-c", str(self.folder / f"{name}.yaml")]
        return subprocess.run(
            [sys.executable, *program, *config, *arguments],
            env={**environment(), **launched},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def train(self, name: str, *arguments: str, ranks: int = 1) -> dict[int, float]:
        """Runs ``fit`` to its end; losses by step."""
        done = self.start(name, *arguments, ranks=ranks)
        assert done.returncode == 0, done.stdout + done.stderr
        return losses(self.folder / name)


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    """Runs in the folder of the test."""
    return Runs(tmp_path)
