"""Fetches peers that are not packages: a checkout at a fixed commit, outside what git tracks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
_NANOGPT = "https://github.com/karpathy/nanoGPT"
_COMMIT = "3adf61e154c3fe3fca428ad6bc3818b27a3b8291"
_SECONDS = 60


def nanogpt(given: str) -> str:
    """Returns the given checkout, else a clone of our own, else "" if it cannot be cloned."""
    if given:
        return given
    place = ROOT / ".peers" / "nanoGPT"
    if (place / "model.py").exists():
        return str(place)
    try:
        _git("clone", "--quiet", _NANOGPT, str(place))
        _git("-C", str(place), "checkout", "--quiet", _COMMIT)
    except (OSError, subprocess.SubprocessError):
        sys.stderr.write(
            f"{_NANOGPT} cannot be cloned: no nanoGPT, and no stock Lightning, which runs its "
            "model; give a checkout with --nanogpt DIR\n"
        )
        return ""
    return str(place)


def _git(*arguments: str) -> None:
    subprocess.run(
        ["git", *arguments],
        check=True,
        timeout=_SECONDS,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
    )
