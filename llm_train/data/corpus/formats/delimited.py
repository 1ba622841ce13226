"""Tables of text with a header: CSV, TSV and their relatives, quoted as in RFC 4180."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from llm_train.data.base import Skipped
from llm_train.data.corpus.formats.base import LONGEST_BYTES, Format, Span
from llm_train.data.corpus.rows import Item


class Delimited(Format):
    """One row a record, which may have line ends between quotes."""

    def read(self, stream: io.BufferedReader, key: str, span: Span | None) -> Iterator[Item]:
        """Keys end in the number of the row, from 0, the header not counted."""
        header = stream.peek()[: 1 << 16].partition(b"\n")[0].decode("utf-8", "replace")
        lines = (line.decode("utf-8", "surrogateescape") for line in stream)
        csv.field_size_limit(LONGEST_BYTES)  # an opening quote alone would swallow the file
        reader = csv.reader(lines, delimiter=self.delimiter or max(",\t;|", key=header.count))
        names = next(reader, [])
        self.rows.columns(names)
        for number, values in enumerate(filter(None, reader)):
            place = f"{key}:{number}"
            if len(values) == len(names):
                yield self.rows.document(place, dict(zip(names, values, strict=True)))
            else:
                detail = f"{len(values)}, the header has {len(names)}"
                yield Skipped(place, "another number of columns than the header", detail)
