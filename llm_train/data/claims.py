"""Which process does what, where processes of any number of machines share a directory.

A claim saves work and decides nothing: whoever does the same piece twice writes the same bytes, and
gives them their name in one step. So a holder that is silent for too long is simply replaced.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from llm_train.runtime.lease import STALE_SECONDS, LeaseHolder, clock_of, holder_of

_BEAT_SECONDS = 5.0
_LOOK_SECONDS = 0.2
_PATTERN = ".*.claim"


class Claims:
    """The claims in one directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._beaten = 0.0

    def take(self, name: str) -> bool:
        """Claims a piece of work, unless somebody who is alive has it."""
        for _ in range(2):
            try:
                flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
                descriptor = os.open(self.path(name), flags, 0o644)
            except FileNotFoundError:  # the directory was finished and got its name
                return False
            except FileExistsError:
                if not self._abandoned(self.path(name)):
                    return False
                self.drop(name)
            else:
                with open(descriptor, "w", encoding="utf-8") as file:
                    json.dump(asdict(LeaseHolder.here()), file)
                return True
        return False

    def beat(self, name: str) -> None:
        """Shows that whoever claimed the work is alive; to be called often."""
        if time.monotonic() - self._beaten > _BEAT_SECONDS:
            self._beaten = time.monotonic()
            with suppress(OSError):
                os.utime(self.path(name))

    def drop(self, name: str) -> None:
        """Lets a piece of work go."""
        self.path(name).unlink(missing_ok=True)

    def once(self, name: str, done: Callable[[], bool], work: Callable[[], None]) -> None:
        """Returns when the work is done, by whatever process, or the directory is gone."""
        while not done() and self._directory.exists():
            if not self.take(name):
                time.sleep(_LOOK_SECONDS)
                continue
            try:
                if not done():
                    work()
            finally:
                self.drop(name)

    def alive(self) -> bool:
        """Whether any claim has a holder that may be alive; one that was just killed may not."""
        deadline = time.monotonic() + 1.0
        while not all(map(self._abandoned, self._directory.glob(_PATTERN))):
            if time.monotonic() > deadline:
                return True
            time.sleep(_LOOK_SECONDS)
        return False

    def path(self, name: str) -> Path:
        """The file of a claim."""
        return self._directory / f".{name}.claim"

    def _abandoned(self, path: Path) -> bool:
        try:
            silent = clock_of(path.parent) - path.stat().st_mtime
            return silent > STALE_SECONDS or holder_of(path).gone
        except FileNotFoundError:
            return True
