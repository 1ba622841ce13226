"""Shell scripts are thin, and at least shell."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.mark.parametrize("name", ["torchrun.sh", "slurm.sbatch"])
def test_syntax(name: str) -> None:
    done = subprocess.run(
        ["bash", "-n", str(SCRIPTS / name)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "-m llm_train" in (SCRIPTS / name).read_text(encoding="utf-8")


def test_torchrun_without_a_verb_says_how() -> None:
    done = subprocess.run(
        [str(SCRIPTS / "torchrun.sh")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("usage:")
