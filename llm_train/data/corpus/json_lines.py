"""One JSON object a line, plain or gzipped."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from llm_train.data.base import Corpus, Document, Skipped
from llm_train.data.corpus.files import check_paths, document, find_files, total_bytes
from llm_train.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class JSONLines(Corpus):
    """Files of JSON objects, one a line; ``.gz`` files are decompressed on the way.

    A document's key is its file's path below what named it, a colon and the line number.

    Attributes:
        paths: files, directories or glob patterns.
        field: the member that holds the text.
    """

    paths: list[str]
    field: str = "text"

    def __post_init__(self) -> None:
        check_paths(self.paths)
        if not self.field:
            raise ConfigError("field='' names no member of the JSON objects, as in field: text")

    def read(self) -> Iterator[Document | Skipped]:
        """Lines in order of their files."""
        for file in find_files(self.paths):
            opener = gzip.open if file.path.suffix == ".gz" else open
            with opener(file.path, "rb") as lines:
                for number, line in enumerate(lines, start=1):
                    yield self._document(f"{file.key}:{number}", line)

    def provenance(self) -> Mapping[str, str | int]:
        """Number of files and their size on disk."""
        files = find_files(self.paths)
        return {"files": len(files), "file_bytes": total_bytes(files)}

    def _document(self, key: str, line: bytes) -> Document | Skipped:
        try:
            row = json.loads(line.decode("utf-8")) if line.strip() else None
        except UnicodeDecodeError:
            return Skipped(key, "not UTF-8")
        except ValueError:
            return Skipped(key, "not JSON")
        if row is None:
            return Skipped(key, "empty")
        if not isinstance(row, dict) or not isinstance(row.get(self.field), str):
            return Skipped(key, f"no text in {self.field!r}")
        return document(key, row[self.field])
