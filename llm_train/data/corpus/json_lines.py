"""One JSON object a line, plain or gzipped."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from llm_train.data.base import Document, Skipped
from llm_train.data.corpus.files import FoundFile, NamedFiles, document
from llm_train.errors import ConfigError

_LONGEST_BYTES = 64 << 20  # of a line; a book has one or two million


@dataclass(frozen=True, kw_only=True)
class JSONLines(NamedFiles):
    """Files of JSON objects, one a line; ``.gz`` files are decompressed on the way.

    A document's key is its file's path below what named it, a colon and the line number.

    Attributes:
        paths: files, directories or glob patterns.
        field: the member that holds the text.
    """

    field: str = "text"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.field:
            raise ConfigError("field='' names no member of the JSON objects, as in field: text")

    def read_file(self, file: FoundFile) -> Iterator[Document | Skipped]:
        """Lines in order."""
        opener = gzip.open if file.path.suffix == ".gz" else open
        with opener(file.path, "rb") as lines:  # decoded one by one: a bad byte spoils one line
            # A packed file of a megabyte may hold a line of a gigabyte, of which a part will do.
            read = partial(lines.readline, _LONGEST_BYTES)
            for number, line in enumerate(iter(read, b""), start=1):
                whole = line.endswith(b"\n") or len(line) < _LONGEST_BYTES
                while not (line.endswith(b"\n") or len(line) < _LONGEST_BYTES):
                    line = read()
                key = f"{file.key}:{number}"
                yield self._document(key, line) if whole else Skipped(key, "too long a line")

    def _document(self, key: str, line: bytes) -> Document | Skipped:
        try:
            row = json.loads(line.decode("utf-8")) if line.strip() else None
        except UnicodeDecodeError:
            return Skipped(key, "not UTF-8")
        except (ValueError, RecursionError):
            return Skipped(key, "not JSON")
        if row is None:
            return Skipped(key, "empty")
        if not isinstance(row, dict) or not isinstance(row.get(self.field), str):
            return Skipped(key, f"no text in {self.field!r}")
        return document(key, row[self.field])
