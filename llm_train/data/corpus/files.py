"""Finding files, and turning their bytes into documents or reasons why not."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from llm_train.data.base import Document, Skipped
from llm_train.errors import ConfigError, DataError


class FoundFile(NamedTuple):
    """A file and the key it goes by: relative to what was configured, so that data can move."""

    key: str
    path: Path


def check_paths(paths: Sequence[str]) -> None:
    """Refuses an empty list and empty entries."""
    if isinstance(paths, str) or not paths or not all(paths):
        raise ConfigError(
            f"paths={paths!r} must be a list of files, directories or glob patterns, "
            "as in [corpus/*.txt]"
        )


def find_files(paths: Sequence[str]) -> list[FoundFile]:
    """Files named by ``paths``, in their order and sorted within each; none twice.

    A directory stands for all files below it whose path holds no name that starts with a dot; in a
    pattern, ``**`` matches any depth.

    Raises:
        DataError: an entry that matches nothing.
    """
    found: dict[Path, FoundFile] = {}
    for entry in paths:
        matches = sorted(_expand(os.path.expanduser(entry)))
        if not matches:
            raise DataError(f"paths: {entry!r} matches no file; correct the path or the pattern")
        for match in matches:
            found.setdefault(match.path.resolve(), match)
    return list(found.values())


def _expand(entry: str) -> Iterator[FoundFile]:
    path = Path(entry)
    if path.is_file():
        yield FoundFile(path.name, path)
    elif path.is_dir():
        yield from walk(path)
    else:
        fixed = Path(*_parts_before_magic(Path(entry).parts))
        for name in glob.iglob(entry, recursive=True):
            if os.path.isfile(name):
                yield FoundFile(Path(name).relative_to(fixed).as_posix(), Path(name))


def _parts_before_magic(parts: Sequence[str]) -> Iterator[str]:
    for part in parts:
        if glob.has_magic(part):
            return
        yield part


def walk(root: Path, without: frozenset[str] = frozenset()) -> Iterator[FoundFile]:
    """Files below ``root``, without hidden ones and directories named in ``without``."""
    for directory, inner, names in os.walk(root):
        inner[:] = [name for name in inner if name not in without and not name.startswith(".")]
        for name in names:
            path = Path(directory, name)
            if not name.startswith(".") and path.is_file():
                yield FoundFile(path.relative_to(root).as_posix(), path)


def total_bytes(files: Sequence[FoundFile]) -> int:
    """Size of the files on disk."""
    return sum(file.path.stat().st_size for file in files)


def document(key: str, text: str) -> Document | Skipped:
    """A document, unless it is empty or holds half of a surrogate pair, which UTF-8 cannot."""
    if not text:
        return Skipped(key, "empty")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return Skipped(key, "lone surrogate")
    return Document(key, text)


def read_document(file: FoundFile) -> Document | Skipped:
    """The whole file, line ends untouched."""
    try:
        text = file.path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return Skipped(file.key, "not UTF-8")
    return document(file.key, text)
