"""Plain text, cut by a separator or not, and tables of text with a header (CSV, TSV)."""

import csv
import io
import re
from collections.abc import Iterator

from llm_train.data.base import Skipped
from llm_train.data.corpus.formats.base import LONGEST_BYTES, Format, Span
from llm_train.data.corpus.opening import BUFFER_BYTES
from llm_train.data.corpus.rows import Item, decoded

_ESCAPES = {r"\n": "\n", r"\r": "\r", r"\t": "\t", r"\f": "\f", r"\0": "\0", r"\\": "\\"}


class PlainText(Format):
    """Line ends are part of the text and stay as they are."""

    def read(self, stream: io.BufferedReader, key: str, span: Span | None) -> Iterator[Item]:
        """Cut before it is decoded, so that a bad byte spoils one document."""
        if not self.separator:
            yield decoded(key, stream.read())
            return
        # A shell passes '\n' on as two characters.
        text = re.sub(r"\\[nrtf0\\]", lambda match: _ESCAPES[match[0]], self.separator)
        for number, data in enumerate(_cut(stream, text.encode())):
            yield decoded(f"{key}#{number}", data)


def _cut(stream: io.BufferedReader, separator: bytes) -> Iterator[bytes]:
    rest, searched = bytearray(), 0  # a long document is searched once, not once a read
    while chunk := stream.read(BUFFER_BYTES):
        rest += chunk
        while (end := rest.find(separator, searched)) >= 0:
            yield bytes(rest[:end])
            del rest[: end + len(separator)]
            searched = 0
        searched = max(0, len(rest) - len(separator) + 1)
    if rest:
        yield bytes(rest)


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
