"""Text in files: finding them, and turning their bytes into documents or reasons why not."""

from __future__ import annotations

import glob
import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, takewhile
from pathlib import Path
from typing import NamedTuple

from llm_train.data.base import Corpus, Document, Skipped
from llm_train.errors import ConfigError, DataError

_READ_CHARACTERS = 1 << 20


class FoundFile(NamedTuple):
    """A file and the key it goes by: relative to what was configured, so that data can move."""

    key: str
    path: Path


class FileCorpus(Corpus):
    """Documents that lie in files.

    Attributes:
        size_key: what provenance calls the size of the files; ``bytes`` where it is the text's.
    """

    size_key = "bytes"

    @abstractmethod
    def files(self) -> list[FoundFile]:
        """The files, in the same order at every call."""

    @abstractmethod
    def documents(self, file: FoundFile) -> Iterator[Document | Skipped]:
        """What one file holds, in order."""

    def read(self) -> Iterator[Document | Skipped]:
        """All documents, in the order of their files."""
        return chain.from_iterable(map(self.documents, self.files()))

    def provenance(self) -> Mapping[str, str | int]:
        """Number of files and their size on disk."""
        files = self.files()
        return {"files": len(files), self.size_key: sum(f.path.stat().st_size for f in files)}


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

    def documents(self, file: FoundFile) -> Iterator[Document | Skipped]:
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
