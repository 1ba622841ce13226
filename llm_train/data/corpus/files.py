"""Text in files: finding them, and turning their bytes into documents or reasons why not."""

from __future__ import annotations

import glob
import os
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain, takewhile
from pathlib import Path
from typing import NamedTuple

from llm_train.data.base import Corpus, Document, Skipped, Unit
from llm_train.errors import ConfigError, DataError

_READ_CHARACTERS = 1 << 20
_UNIT_BYTES = 64 << 20
_SAMPLE_BYTES = 1 << 16
_SAMPLES = 16


class FoundFile(NamedTuple):
    """A file and the key it goes by: relative to what was configured, so that data can move."""

    key: str
    path: Path


@dataclass(frozen=True, kw_only=True)
class Files(Unit):
    """Some files that follow one another.

    Attributes:
        files: at least one.
    """

    files: tuple[FoundFile, ...]


class FileCorpus(Corpus):
    """Documents that lie in files."""

    @abstractmethod
    def files(self) -> list[FoundFile]:
        """The files, in the same order at every call."""

    @abstractmethod
    def read_file(self, file: FoundFile) -> Iterator[Document | Skipped]:
        """What one file holds, in order."""

    def units(self) -> list[Files]:
        """Whole files, small ones together."""
        groups: list[list[FoundFile]] = []
        sizes: list[int] = []
        for file in self.files():
            size = file.path.stat().st_size
            if not groups or sizes[-1] + size > _UNIT_BYTES:
                groups.append([])
                sizes.append(0)
            groups[-1].append(file)
            sizes[-1] += size
        return [
            Files(name=f"{number}:{group[0].key}", size=size, stamp=_stamp(group), files=(*group,))
            for number, (group, size) in enumerate(zip(groups, sizes, strict=True))
        ]

    def documents(self, unit: Unit) -> Iterator[Document | Skipped]:
        """All documents of the unit's files."""
        assert isinstance(unit, Files), "a corpus is given its own units"
        return chain.from_iterable(map(self.read_file, unit.files))


@dataclass(frozen=True, kw_only=True)
class NamedFiles(FileCorpus):
    """Documents in files that the configuration names.

    Attributes:
        paths: files, directories or glob patterns.
    """

    paths: list[str]

    def __post_init__(self) -> None:
        paths: Sequence[str] = self.paths  # a script may have passed a text
        if isinstance(paths, str) or not paths or not all(paths):
            raise ConfigError(
                f"paths={paths!r} must be a list of files, directories or glob patterns, "
                "as in [corpus/*.txt]"
            )

    def files(self) -> list[FoundFile]:
        """Files named by ``paths``, in their order and sorted within each; none twice.

        A directory stands for all files below it whose path holds no name that starts with a dot;
        in a pattern, ``**`` matches any depth.

        Raises:
            DataError: an entry that matches nothing.
        """
        found: dict[Path, FoundFile] = {}
        for entry in self.paths:
            matches = sorted(_expand(os.path.expanduser(entry)))
            if not matches:
                raise DataError(
                    f"paths: {entry!r} matches no file; correct the path or the pattern"
                )
            for match in matches:
                found.setdefault(match.path.resolve(), match)
        return list(found.values())


@dataclass(frozen=True, kw_only=True)
class TextFiles(NamedFiles):
    r"""UTF-8 text files.

    A document's key is the file's path below the directory or the fixed part of the pattern that
    named it, with ``#number`` where the file is cut.

    Attributes:
        paths: files, directories or glob patterns.
        separator: the text between documents where a file holds many (``"\n\n\n"``,
            ``"<|endoftext|>"``); it belongs to none of them. Such files are read in pieces and may
            be larger than memory. "" means that a file is one document.
    """

    separator: str = ""

    def read_file(self, file: FoundFile) -> Iterator[Document | Skipped]:
        """The whole file, or the texts between separators."""
        if not self.separator:
            yield read_document(file)
            return
        number, rest = 0, ""
        # newline="" leaves line ends as they are: "\r\n" is part of the text.
        with file.path.open(encoding="utf-8", newline="") as stream:
            try:
                while chunk := stream.read(_READ_CHARACTERS):
                    *whole, rest = (rest + chunk).split(self.separator)
                    for text in whole:
                        yield document(f"{file.key}#{number}", text)
                        number += 1
            except UnicodeDecodeError:
                yield Skipped(f"{file.key}#{number}", "not UTF-8 from here to the end of the file")
                return
        if rest:
            yield document(f"{file.key}#{number}", rest)


def _expand(entry: str) -> Iterator[FoundFile]:
    path = Path(entry)
    if path.is_file():
        yield FoundFile(path.name, path)
    elif path.is_dir():
        yield from walk(path)
    else:
        fixed = Path(*takewhile(lambda part: not glob.has_magic(part), path.parts))
        for match in map(Path, glob.iglob(entry, recursive=True)):
            if match.is_file():
                yield FoundFile(match.relative_to(fixed).as_posix(), match)


def walk(root: Path, without: frozenset[str] = frozenset()) -> Iterator[FoundFile]:
    """Files below ``root``, without hidden ones and directories named in ``without``."""
    for directory, inner, names in os.walk(root):
        inner[:] = [name for name in inner if name not in without and not name.startswith(".")]
        for name in names:
            path = Path(directory, name)
            if not name.startswith(".") and path.is_file():
                yield FoundFile(path.relative_to(root).as_posix(), path)


def document(key: str, text: str) -> Document | Skipped:
    """A document, unless it is empty or holds half of a surrogate pair, which UTF-8 cannot."""
    if not text:
        return Skipped(key, "empty")
    try:
        text.encode()
    except UnicodeEncodeError:
        return Skipped(key, "lone surrogate")
    return Document(key, text)


def read_document(file: FoundFile) -> Document | Skipped:
    """The whole file, line ends untouched."""
    try:
        return document(file.key, file.path.read_bytes().decode("utf-8"))
    except UnicodeDecodeError:
        return Skipped(file.key, "not UTF-8")


def _stamp(files: Iterable[FoundFile]) -> str:
    """Changes with names and content: a hash of small files, of samples of large ones."""
    digest = sha256()
    for file in files:
        digest.update(f"{file.key} {stamp_of(file.path)}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def stamp_of(path: Path) -> str:
    """Size and hash of a file of up to a megabyte; of a larger one, samples and its time, too.

    The time alone would change when a file is copied, samples alone not with every edit.
    """
    digest = sha256()
    with path.open("rb", buffering=0) as file:
        found = os.fstat(file.fileno())
        if found.st_size <= _SAMPLES * _SAMPLE_BYTES:
            digest.update(file.read())
            return f"{found.st_size} {digest.hexdigest()}"
        for number in range(_SAMPLES):
            file.seek((found.st_size - _SAMPLE_BYTES) * number // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
    return f"{found.st_size} {found.st_mtime_ns} {digest.hexdigest()}"
