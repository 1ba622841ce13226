"""Files that are whole or absent after a crash: written aside, flushed to the disk, then renamed.

A rename is the only atomic step that a file system offers, and it is on the disk only when the
directory that holds the name has been flushed as well. Checkpoints and prepared tokens are both
written with what stands here, and the manifest of either is its last file.
"""

import json
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llm_train.errors import ConfigError

_log = logging.getLogger(__name__)
_CHUNK_BYTES = 4 << 20


def sync(path: Path) -> None:
    """Flushes a file, or the names, renames and removals in a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename(source: Path, target: Path) -> None:
    """Gives what ``source`` names the name ``target``, for good."""
    os.replace(source, target)
    sync(target.parent)


def own_name(path: Path) -> Path:
    """A name for a file that is not whole yet, which no other process uses."""
    return path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}")


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """Gives the name to write a file under that gets ``path``'s once it is whole."""
    aside = own_name(path)
    yield aside
    sync(aside)
    rename(aside, path)


def require_writable(path: str | Path, option: str, *, file: bool) -> None:
    """Refuses a file, or else a folder, that could not be written once the work for it is done.

    Raises:
        ConfigError: with the option that names it.
    """
    place = Path(path)
    above = [place, *place.absolute().parents]
    try:
        with tempfile.TemporaryFile(dir=place.parent if file else next(filter(Path.exists, above))):
            pass
        if file and place.exists():
            place.open("ab").close()
    except OSError as error:
        raise ConfigError(
            f"{option}={path} cannot be written: {error.strerror}; name another place"
        ) from None


def discard(path: Path) -> None:
    """Removes a directory, a file or a link, if it is there; what a link leads to stays."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def remove(path: Path, grave: Path) -> None:
    """Removes a directory; under its own name it is whole until it is gone."""
    discard(grave)
    os.replace(path, grave)
    discard(grave)


def replace(source: Path, target: Path, grave: Path) -> None:
    """As ``rename``, where ``target`` may exist; only two renames lie between the old and the new.

    A ``grave`` that cannot be emptied is left behind: the new directory is in its place.
    """
    _try_to_discard(grave)
    if os.path.lexists(target):
        os.replace(target, grave)
    rename(source, target)
    _try_to_discard(grave)


def _try_to_discard(path: Path) -> None:
    try:
        discard(path)
    except OSError as error:
        _log.warning("cannot remove %s, which takes space until it can be: %s", path, error)


def write_manifest(path: Path, content: object) -> None:
    """Writes ``content`` as JSON; everything it speaks of must be on the disk already."""
    with written(path) as aside:
        aside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def chunks(path: Path, *, flush: bool = False) -> Iterator[bytes]:
    """Yields the content of a file; with ``flush`` it is on the disk once all of it was taken."""
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk
        if flush:
            os.fsync(file.fileno())
