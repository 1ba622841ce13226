"""Lets every call by which this process changes a folder fail, or be its last.

Python announces what it is about to do with the names of files (``sys.addaudithook``), threads and
libraries included, and does not do it where a hook raises. Of writes and flushes it says nothing:
those functions are replaced, and below the buffers of a file that is opened for writing lies the
one that is written in Python (``_pyio``), which calls them. What C code writes by itself is not
seen; a test compares the calls seen here with those that strace sees, where there is one.
"""

from __future__ import annotations

import _pyio
import builtins
import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

# event -> which of its arguments is the path, and which says what that is relative to
_EVENTS = {
    "open": (0, None),
    "os.mkdir": (0, 2),
    "os.rmdir": (0, 1),
    "os.remove": (0, 1),
    "os.rename": (1, 3),
    "os.link": (1, 3),
    "os.symlink": (1, 2),
    "os.truncate": (0, None),
}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_REAL = {name: getattr(os, name) for name in ("write", "sendfile", "fsync")}

Act = Callable[[int, str, Path], bool]
"""Gets number, name and path of a call before it is made, and may raise or end the process.

What it returns matters for a write alone: whether the disk takes half of the bytes.
"""


class Disk:
    """Knows which calls concern a folder, and counts them.

    Attributes:
        made: calls so far.
    """

    def __init__(self, folder: Path, act: Act) -> None:
        self._folder, self._act = os.path.realpath(folder), act
        self._lock = threading.Lock()
        self.made = 0

    def point(self, name: str, path: Any, relative_to: int = -1) -> bool:
        """Counts the call if it concerns the folder, and lets ``act`` decide."""
        where = _path_of(path) if isinstance(path, int) else os.fsdecode(path)
        if relative_to >= 0:
            where = os.path.join(_path_of(relative_to), where)
        parent, own = os.path.split(where)
        where = os.path.join(os.path.realpath(parent or "."), own)
        if where != self._folder and not where.startswith(self._folder + os.sep):
            return False
        with self._lock:
            self.made += 1
            number = self.made
        return self._act(number, name, Path(where))

    def write(self, descriptor: int, data: Any) -> int:
        """Stands in for ``os.write``."""
        half, content = self.point("write", descriptor), bytes(data)
        return _REAL["write"](descriptor, content[: max(1, len(content) // 2)] if half else content)

    def sendfile(self, out: int, source: int, offset: int, size: int) -> int:
        """Stands in for ``os.sendfile``."""
        half = self.point("sendfile", out)
        return _REAL["sendfile"](out, source, offset, max(1, size // 2) if half else size)

    def fsync(self, file: Any) -> None:
        """Stands in for ``os.fsync``."""
        self.point("fsync", file if isinstance(file, int) else file.fileno())
        _REAL["fsync"](file)


_watched: list[Disk] = []  # a hook cannot be taken back


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if _watched and event in _EVENTS and (event != "open" or arguments[2] & _WRITES):
        path, relative_to = _EVENTS[event]
        for disk in _watched:
            name = event.removeprefix("os.")
            disk.point(name, arguments[path], arguments[relative_to] if relative_to else -1)


sys.addaudithook(_hear)


@contextmanager
def disk_faults(folder: Path, act: Act) -> Iterator[Disk]:
    """Calls ``act`` before each call of this process that changes ``folder`` or what is in it."""
    disk, real = Disk(folder, act), io.open

    def opened(file: Any, mode: str = "r", *rest: Any, **more: Any) -> Any:
        return (_pyio.open if set(mode) & set("wax+") else real)(file, mode, *rest, **more)

    with ExitStack() as stack:
        for name in _REAL:
            stack.enter_context(mock.patch.object(os, name, getattr(disk, name)))
        for name in ("BufferedWriter", "BufferedRandom", "TextIOWrapper"):  # cut writes as usual
            stack.enter_context(mock.patch.object(_pyio, name, getattr(io, name)))
        for module in (io, builtins):
            stack.enter_context(mock.patch.object(module, "open", opened))
        _watched.append(disk)
        stack.callback(_watched.remove, disk)
        yield disk


def count(folder: Path, action: Callable[[], object]) -> list[str]:
    """The names of the calls by which ``action`` changes ``folder``, in order."""
    seen: list[str] = []

    def note(number: int, name: str, path: Path) -> bool:
        seen.append(name)
        return False

    with disk_faults(folder, note):
        action()
    return seen


def killed_at(wanted: int, *, halfway: bool = False) -> Act:
    """SIGKILL just before call ``wanted``; ``halfway``: a write writes half of its bytes."""

    def act(number: int, name: str, path: Path) -> bool:
        torn = halfway and name in ("write", "sendfile")
        if number > wanted or (number == wanted and not torn):
            os.kill(os.getpid(), signal.SIGKILL)
        return number == wanted

    return act


def failing_at(wanted: int, code: int, *, lasting: bool = False) -> Act:
    """Call ``wanted``, or every one from there on, raises error ``code``; 0: a short write."""

    def act(number: int, name: str, path: Path) -> bool:
        meant = number == wanted or (lasting and number > wanted)
        if meant and code:
            raise OSError(code, os.strerror(code), str(path))
        return meant

    return act


def _path_of(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{descriptor}")


ERRORS = {
    "full": errno.ENOSPC,
    "io": errno.EIO,
    "quota": errno.EDQUOT,
    "denied": errno.EACCES,
    "readonly": errno.EROFS,
    "short": 0,
}
"""What a disk may answer, by name; ``short`` is a write that takes half of the bytes."""
