"""Prints the versions that go into every row, as one line of JSON.

This is a process of its own, because asking CUDA for the device's name takes memory on the device
until the process ends.
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.usage import arguments

PACKAGES = (
    *("lightning", "transformers", "accelerate", "deepspeed", "torchao", "triton", "liger-kernel"),
)
ROOT = Path(__file__).parents[2]


def _first_line(*command: str) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.splitlines()[0].strip() if done.returncode == 0 and done.stdout else None


def versions() -> dict[str, Any]:
    """Returns software, device, driver and commit; None stands for what is missing."""
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "commit": _first_line("git", "--no-optional-locks", "describe", "--always", "--dirty"),
        "driver": _first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "device": platform.machine() + " CPU",
        "memory_gib": None,
    }
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    if torch.cuda.is_available():
        found["device"] = torch.cuda.get_device_name()
        found["memory_gib"] = torch.cuda.get_device_properties(0).total_memory / 2**30
    return found


def described() -> dict[str, Any]:
    """Asks another process for the versions of the software and the device."""
    command = [sys.executable, "-m", "benchmarks.studies.environment"]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    arguments()
    print(json.dumps(versions()))
