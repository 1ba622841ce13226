"""Parquet and Arrow: columns that pyarrow decodes, read a few rows at a time."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from llm_train.data.base import Skipped
from llm_train.data.corpus.formats.base import Format, Span
from llm_train.data.corpus.opening import BUFFER_BYTES
from llm_train.data.corpus.rows import Item
from llm_train.runtime.extras import library

if TYPE_CHECKING:
    from pyarrow import RecordBatch

_ROWS = 64  # at a time; a row may be a book


class Columns(Format):
    """Keys end in the number of the row, from 0."""

    is_text = False

    def read(self, stream: io.BufferedReader, key: str, span: Span | None) -> Iterator[Item]:
        """Parquet, Arrow's file form (which Feather is) or its streaming form."""
        number = 0
        if stream.peek(4).startswith(b"PAR1"):
            file = _parquet(stream)
            names = self.rows.columns(file.schema_arrow.names)
            groups = range(*(span or (0, file.num_row_groups)))
            number = sum(file.metadata.row_group(n).num_rows for n in range(groups.start))
            batches = file.iter_batches(_ROWS, [*groups], names, use_threads=False)
        else:
            ipc = library("pyarrow.ipc", "data")
            if stream.peek(6).startswith(b"ARROW1"):
                file = ipc.open_file(_seekable(stream))
                whole = map(file.get_batch, range(file.num_record_batches))
            else:
                file = whole = ipc.open_stream(stream)
            names = self.rows.columns(file.schema.names)
            batches = (part for batch in whole for part in _parts(batch.select(names), _ROWS))
        for batch in batches:
            yield from self._items(batch, key, number)
            number += batch.num_rows

    def spans(self, stream: io.BufferedReader, size: int, target: int) -> Sequence[Span]:
        """Row groups of Parquet that have so many bytes together."""
        if not stream.peek(4).startswith(b"PAR1"):
            return ()
        metadata, cuts, length = _parquet(stream).metadata, [0], 0
        for group in range(metadata.num_row_groups):
            length += metadata.row_group(group).total_byte_size
            if length >= target or group == metadata.num_row_groups - 1:
                cuts.append(group + 1)
                length = 0
        return [Span(start, stop) for start, stop in pairwise(cuts)]

    def _items(self, batch: RecordBatch, key: str, number: int) -> Iterator[Item]:
        try:
            rows = batch.to_pylist()
        except UnicodeDecodeError:  # Arrow's writers do not look; halves, to lose one row only
            if batch.num_rows == 1:
                yield Skipped(f"{key}:{number}", "not UTF-8")
                return
            for part in _parts(batch, (batch.num_rows + 1) // 2):
                yield from self._items(part, key, number)
                number += part.num_rows
            return
        for at, row in enumerate(rows, start=number):
            yield self.rows.document(f"{key}:{at}", row)


def _parts(batch: RecordBatch, rows: int) -> Iterator[RecordBatch]:
    return (batch.slice(start, rows) for start in range(0, batch.num_rows, rows))


def _parquet(stream: io.BufferedReader) -> Any:
    parquet = library("pyarrow.parquet", "data")
    return parquet.ParquetFile(_seekable(stream), buffer_size=BUFFER_BYTES)


def _seekable(stream: io.BufferedReader) -> io.BufferedIOBase:
    """Both have their table of contents at the end; a member of an archive is read whole."""
    return stream if stream.seekable() else io.BytesIO(stream.read())
