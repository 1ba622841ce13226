"""Plain text files, whole or cut at a separator."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from llm_train.data.base import Corpus, Document, Skipped
from llm_train.data.corpus.files import (
    FoundFile,
    check_paths,
    document,
    find_files,
    read_document,
    total_bytes,
)

_READ_CHARACTERS = 1 << 20


@dataclass(frozen=True, kw_only=True)
class TextFiles(Corpus):
    r"""UTF-8 text files.

    A document's key is the file's path below the directory or the fixed part of the pattern that
    named it, with ``#number`` where the file is cut.

    Attributes:
        paths: files, directories or glob patterns.
        separator: the text between documents where a file holds many (``"\n\n\n"``,
            ``"<|endoftext|>"``); it belongs to none of them. Such files are read in pieces and may
            be larger than memory. "" means that a file is one document.
    """

    paths: list[str]
    separator: str = ""

    def __post_init__(self) -> None:
        check_paths(self.paths)

    def read(self) -> Iterator[Document | Skipped]:
        """Files in order of their paths."""
        for file in find_files(self.paths):
            if self.separator:
                yield from self._cut(file)
            else:
                yield read_document(file)

    def provenance(self) -> Mapping[str, str | int]:
        """Number of files and their size."""
        files = find_files(self.paths)
        return {"files": len(files), "bytes": total_bytes(files)}

    def _cut(self, file: FoundFile) -> Iterator[Document | Skipped]:
        number, rest = 0, ""
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
