"""Tables of text with a header: CSV, TSV and their relatives."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass

from llm_train.data.base import Document, Skipped
from llm_train.data.corpus.formats.base import LONGEST_BYTES, Format, Span
from llm_train.data.corpus.rows import RowText

_DELIMITERS = ",\t;|"


@dataclass(frozen=True, kw_only=True)
class Table(Format):
    """Rows under a header, fields quoted as in RFC 4180.

    Attributes:
        rows: how a row becomes text.
        delimiter: between fields; "" is the one that the header has most often.
    """

    rows: RowText
    delimiter: str

    def read(
        self, stream: io.BufferedReader, key: str, span: Span | None
    ) -> Iterator[Document | Skipped]:
        """Keys end in the number of the row, from 0, the header not counted."""
        header = stream.peek()[: 1 << 16].partition(b"\n")[0].decode("utf-8", "replace")
        lines = (line.decode("utf-8", "surrogateescape") for line in stream)
        csv.field_size_limit(LONGEST_BYTES)  # an opening quote alone would swallow the file
        reader = csv.reader(lines, delimiter=self.delimiter or max(_DELIMITERS, key=header.count))
        names = next(reader, [])
        self.rows.columns(names)
        for number, values in enumerate(filter(None, reader)):
            place = f"{key}:{number}"
            if len(values) == len(names):
                yield self.rows.document(place, dict(zip(names, values, strict=True)))
            else:
                detail = f"{len(values)}, the header has {len(names)}"
                yield Skipped(place, "another number of columns than the header", detail)
