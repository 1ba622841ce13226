"""Lets every call by which this process changes a folder fail, or be its last.

Python's own functions are replaced, so that the real code runs, threads and libraries included, as
long as they write through Python. What C code writes by itself is not seen; a test compares the
calls seen here with those that strace sees, where there is one.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import IO, TYPE_CHECKING, Any, NoReturn
from unittest import mock

if TYPE_CHECKING:
    from typing_extensions import Buffer

FileName = str | bytes | os.PathLike[str] | os.PathLike[bytes] | int
Opener = Callable[[str, int], int]

# name -> which arguments are paths, and the keywords that say what they are relative to
_CALLS: dict[str, tuple[str, ...]] = {
    "mkdir": ("dir_fd",),
    "rmdir": ("dir_fd",),
    "unlink": ("dir_fd",),
    "remove": ("dir_fd",),
    "rename": ("src_dir_fd", "dst_dir_fd"),
    "replace": ("src_dir_fd", "dst_dir_fd"),
    "link": ("src_dir_fd", "dst_dir_fd"),
    "symlink": ("", "dir_fd"),
    "truncate": ("",),
}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

Act = Callable[[int, str, Path], int | None]
"""Gets number, name and path of a call before it is made, and may raise or end the process.

What it returns matters for ``write`` alone: how many bytes the disk takes; None: all.
"""


@contextmanager
def disk_faults(folder: Path, act: Act) -> Iterator[Disk]:
    """Calls ``act`` before each call of this process that changes ``folder`` or what is in it."""
    disk = Disk(folder, act)
    replaced: list[tuple[ModuleType, str, Callable[..., Any]]] = [
        *((os, name, disk.changing(name)) for name in _CALLS),
        *((os, name, disk.on_descriptor(name)) for name in ("fsync", "ftruncate")),
        (os, "open", disk.open_descriptor),
        (os, "write", disk.write_descriptor),
        (io, "open", disk.open_file),
        (builtins, "open", disk.open_file),
    ]
    with ExitStack() as stack:
        for module, name, replacement in replaced:
            stack.enter_context(mock.patch.object(module, name, replacement))
        yield disk


def count(folder: Path, action: Callable[[], object]) -> list[str]:
    """The names of the calls by which ``action`` changes ``folder``, in order."""
    seen: list[str] = []

    def note(number: int, name: str, path: Path) -> None:
        seen.append(name)

    with disk_faults(folder, note):
        action()
    return seen


def killed_at(wanted: int, *, halfway: bool = False) -> Act:
    """SIGKILL just before call ``wanted``; ``halfway``: a ``write`` writes half of its bytes."""

    def act(number: int, name: str, path: Path) -> int | None:
        if number == wanted and not (halfway and name == "write"):
            _die()
        if number > wanted:
            _die()
        return -1 if number == wanted else None

    return act


def failing_at(wanted: int, code: int, *, lasting: bool = False) -> Act:
    """Call ``wanted``, or every one from there on, raises error ``code``; 0: a short write."""

    def act(number: int, name: str, path: Path) -> int | None:
        if number == wanted or (lasting and number > wanted):
            if code:
                raise OSError(code, os.strerror(code), str(path))
            return -1
        return None

    return act


def _die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("nobody survives that")


class Disk:
    """Knows which calls concern a folder, and counts them.

    Attributes:
        made: calls so far.
    """

    def __init__(self, folder: Path, act: Act) -> None:
        self._folder = os.path.realpath(folder)
        self._act = act
        self._lock = threading.Lock()
        self.made = 0
        self._open: Callable[..., IO[Any]] = io.open
        self._os = {name: getattr(os, name) for name in (*_CALLS, "open", "fsync", "write")}
        self._os["ftruncate"] = os.ftruncate

    def point(self, name: str, path: object, relative_to: object = None) -> int | None:
        """Counts the call if it concerns the folder, and lets ``act`` decide."""
        where = os.fspath(path) if isinstance(path, (str, bytes, os.PathLike)) else ""
        where = os.fsdecode(where)
        if relative_to is not None:
            where = os.path.join(os.readlink(f"/proc/self/fd/{relative_to}"), where)
        where = os.path.join(
            os.path.realpath(os.path.dirname(where) or "."), os.path.basename(where)
        )
        if where != self._folder and not where.startswith(self._folder + os.sep):
            return None
        with self._lock:
            self.made += 1
            number = self.made
        return self._act(number, name, Path(where))

    def changing(self, name: str) -> Callable[..., Any]:
        """What stands in for a function of ``os`` that takes paths."""
        real, relative = self._os[name], _CALLS[name]

        def call(*arguments: object, **options: object) -> object:
            paths = arguments[: len(relative)]
            where = paths[-1] if paths else options.get("dst", options.get("path"))
            self.point(name, where, options.get(relative[-1]) if relative[-1] else None)
            return real(*arguments, **options)

        return call

    def open_descriptor(self, path: object, flags: int, *rest: object, **options: object) -> int:
        """Stands in for ``os.open``."""
        if flags & _WRITES:
            self.point("open", path, options.get("dir_fd"))
        descriptor: int = self._os["open"](path, flags, *rest, **options)
        return descriptor

    def on_descriptor(self, name: str) -> Callable[..., Any]:
        """What stands in for a function of ``os`` that takes a descriptor."""

        def call(descriptor: object, *rest: object) -> object:
            self.point(name, os.readlink(f"/proc/self/fd/{_number_of(descriptor)}"))
            return self._os[name](descriptor, *rest)

        return call

    def write_descriptor(self, descriptor: int, data: Buffer) -> int:
        """Stands in for ``os.write``."""
        taken = self.point("write", os.readlink(f"/proc/self/fd/{descriptor}"))
        written: int = self._os["write"](descriptor, data if taken is None else half(data))
        return written

    def open_file(
        self, file: FileName, mode: str = "r", buffering: int = -1, *rest: Any, **more: Any
    ) -> IO[Any]:
        """Stands in for ``open``."""
        if not set(mode) & set("wax+"):
            return self._open(file, mode, buffering, *rest, **more)
        if isinstance(file, int):
            self.point("open", os.readlink(f"/proc/self/fd/{file}"))
        else:
            self.point("open", file)
        return self._stack(file, mode, buffering, *rest, **more)

    def _stack(
        self,
        file: FileName,
        mode: str,
        buffering: int,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: Opener | None = None,
    ) -> IO[Any]:
        """What ``open`` returns, above a file whose every write is a call."""
        raw = _File(self, file, mode.replace("b", "").replace("t", ""), closefd, opener)
        if buffering == 0:
            return raw
        size = io.DEFAULT_BUFFER_SIZE if buffering < 0 else max(buffering, 2)
        binary = io.BufferedRandom(raw, size) if "+" in mode else io.BufferedWriter(raw, size)
        if "b" in mode:
            return binary
        return io.TextIOWrapper(binary, encoding, errors, newline, line_buffering=buffering == 1)


class _File(io.FileIO):
    def __init__(
        self, disk: Disk, file: FileName, mode: str, closefd: bool, opener: Opener | None
    ) -> None:
        super().__init__(file, mode, closefd, opener)
        self._disk = disk

    def write(self, data: Buffer) -> int:
        taken = self._disk.point("write", os.readlink(f"/proc/self/fd/{self.fileno()}"))
        return super().write(data if taken is None else half(data))


def half(data: Buffer) -> memoryview:
    """What a disk takes of ``data`` that does not take all of it."""
    view = memoryview(data).cast("B")
    return view[: max(1, len(view) // 2)]


def _number_of(descriptor: object) -> int:
    if isinstance(descriptor, int):
        return descriptor
    assert isinstance(descriptor, io.IOBase)
    return descriptor.fileno()


ERRORS = {
    "full": errno.ENOSPC,
    "io": errno.EIO,
    "quota": errno.EDQUOT,
    "denied": errno.EACCES,
    "readonly": errno.EROFS,
    "short": 0,
}
"""What a disk may answer, by name; ``short`` is a write that takes half of the bytes."""
