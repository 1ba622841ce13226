"""What takes seconds of imports to say, kept in a file until the installation changes."""

import hashlib
import json
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from llm_train.runtime import disk

_PACKAGE = Path(__file__).parents[1]
_LIBRARIES = ("torch", "lightning", "pytorch-lightning", "jsonargparse")


def kept(name: str, make: Callable[[], Any]) -> Any:
    """What ``make`` gave to the first process of this installation that asked; plain values only.

    A file that cannot be read or written costs the time and nothing else.
    """
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a container's user without a name has no home
        return make()
    place = hashlib.sha256(f"{sys.executable} {_PACKAGE}".encode()).hexdigest()[:16]
    file, stamp = base / "llm_train" / f"{name}-{place}.json", _stamp()
    try:
        found = json.loads(file.read_text("utf-8"))
        if found["stamp"] == stamp:
            return found["value"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    value = make()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        disk.write_manifest(file, {"stamp": stamp, "value": value})
    except OSError:
        pass
    return value


def _stamp() -> str:
    """Changes with each file of the package and each library whose signatures are read."""
    files = {str(file): file.stat() for file in sorted(_PACKAGE.rglob("*.py"))}
    states = [(name, found.st_mtime_ns, found.st_size) for name, found in files.items()]
    return hashlib.sha256(repr([states, *map(version, _LIBRARIES)]).encode()).hexdigest()
