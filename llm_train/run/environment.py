"""Which code ran on what: where a difference between two runs may come from, settings apart."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

_PACKAGES = ("llm-train", "torch", "lightning", "numpy", "tokenizers", "deepspeed", "torchao")
_GIT_SECONDS = 5.0


def environment(device: torch.device) -> dict[str, str]:
    """Versions, the code by a hash of its files and the commit it lies in, and the device.

    Args:
        device: of this rank.
    """
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    package = Path(__file__).parents[1]
    found["code"] = _hash(package)
    if (package.parent / ".git").exists():
        command = ("git", "-C", str(package), "rev-parse", "HEAD")
        with suppress(OSError, subprocess.SubprocessError):
            found["commit"] = subprocess.check_output(
                command, text=True, stderr=subprocess.DEVNULL, timeout=_GIT_SECONDS
            ).strip()
    cpu = f"{platform.machine()} CPU, {os.cpu_count()} processors"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    return found | {"host": platform.node(), "device": name}


def _hash(package: Path) -> str:
    """Of all files of code: it also changes where no commit was made."""
    found = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        found.update(file.relative_to(package).as_posix().encode() + file.read_bytes())
    return found.hexdigest()[:12]
