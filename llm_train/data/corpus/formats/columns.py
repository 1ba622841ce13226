"""Parquet and Arrow: columns that pyarrow decodes, read a few rows at a time."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from llm_train.data.base import Document, Skipped
from llm_train.data.corpus.formats.base import Format, Span
from llm_train.data.corpus.opening import BUFFER_BYTES
from llm_train.data.corpus.rows import RowText
from llm_train.errors import ConfigError

_ROWS = 64  # at a time; a row may be a book


@dataclass(frozen=True, kw_only=True)
class Parquet(Format):
    """Parquet, which can be cut at its row groups.

    Attributes:
        rows: how a row becomes text.
    """

    rows: RowText
    is_text = False

    def read(
        self, stream: io.BufferedReader, key: str, span: Span | None
    ) -> Iterator[Document | Skipped]:
        """Keys end in the number of the row, from 0."""
        file = _parquet(stream)
        names = self.rows.columns(file.schema_arrow.names)
        groups = range(*(span or (0, file.num_row_groups)))
        number = sum(file.metadata.row_group(group).num_rows for group in range(groups.start))
        for batch in file.iter_batches(_ROWS, [*groups], names, use_threads=False):
            yield from _documents(batch, self.rows, key, number)
            number += batch.num_rows

    def spans(self, stream: io.BufferedReader, size: int, target: int) -> Sequence[Span]:
        """Row groups that have so many bytes together."""
        metadata, cuts, length = _parquet(stream).metadata, [0], 0
        for group in range(metadata.num_row_groups):
            columns = range(metadata.num_columns)
            here = metadata.row_group(group)
            length += sum(here.column(column).total_compressed_size for column in columns)
            if length >= target:
                cuts.append(group + 1)
                length = 0
        if length:
            cuts.append(metadata.num_row_groups)
        return [Span(start, stop) for start, stop in pairwise(cuts)]


@dataclass(frozen=True, kw_only=True)
class Arrow(Format):
    """Arrow's file form, which Feather is too, and its streaming form.

    Attributes:
        rows: how a row becomes text.
    """

    rows: RowText
    is_text = False

    def read(
        self, stream: io.BufferedReader, key: str, span: Span | None
    ) -> Iterator[Document | Skipped]:
        """Keys end in the number of the row, from 0."""
        ipc = _pyarrow().ipc
        if stream.peek(6).startswith(b"ARROW1"):
            file = ipc.open_file(_seekable(stream))
            batches = map(file.get_batch, range(file.num_record_batches))
        else:
            file = batches = ipc.open_stream(stream)
        names, number = self.rows.columns(file.schema.names), 0
        for batch in batches:
            chosen = batch.select(names)
            for start in range(0, chosen.num_rows, _ROWS):
                part = chosen.slice(start, _ROWS)
                yield from _documents(part, self.rows, key, number + start)
            number += chosen.num_rows


def _documents(batch: Any, rows: RowText, key: str, number: int) -> Iterator[Document | Skipped]:
    try:
        found = batch.to_pylist()
    except UnicodeDecodeError:  # Arrow's writers do not look; one by one, to lose one only
        if batch.num_rows == 1:
            yield Skipped(f"{key}:{number}", "not UTF-8")
        else:
            half = batch.num_rows // 2
            yield from _documents(batch.slice(0, half), rows, key, number)
            yield from _documents(batch.slice(half), rows, key, number + half)
        return
    for at, row in enumerate(found, start=number):
        yield rows.document(f"{key}:{at}", row)


def _parquet(stream: io.BufferedReader) -> Any:
    _pyarrow()
    from pyarrow.parquet import ParquetFile

    return ParquetFile(_seekable(stream), buffer_size=BUFFER_BYTES)


def _seekable(stream: io.BufferedReader) -> io.BufferedIOBase:
    """Both have their table of contents at the end; a member of an archive is read whole."""
    return stream if stream.seekable() else io.BytesIO(stream.read())


def _pyarrow() -> Any:
    try:
        import pyarrow.ipc
    except ImportError:
        raise ConfigError(
            "Parquet and Arrow need the package pyarrow; run pip install 'llm-train[data]'"
        ) from None
    return pyarrow
