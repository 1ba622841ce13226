"""JSON: an object a line, or one array of objects, or objects over several lines.

Lines are read one by one, and a broken one spoils itself only. Elsewhere nobody can tell where a
broken value ends, so that it is an error. An array is never in memory as a whole.
"""

import codecs
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from llm_train.data.base import Skipped
from llm_train.data.corpus.formats.base import LONGEST_BYTES, Format, Span
from llm_train.data.corpus.opening import BUFFER_BYTES
from llm_train.data.corpus.rows import Item

try:
    import orjson

    _loads: Callable[[bytes], object] = orjson.loads
except ImportError:
    _loads = json.loads

_NOT_LINES = re.compile(rb"\s*(\[\s*(\{|$)|\{\s*[\r\n])")  # an array, or an indented object
_NEXT = re.compile(r"[^\s,]|$")


class JSONValues(Format):
    """JSON in the layout that its first characters show."""

    def read(self, stream: io.BufferedReader, key: str, span: Span | None) -> Iterator[Item]:
        """Keys end in the number of the line, from 1, or of the value, from 0."""
        if span is None and _NOT_LINES.match(stream.peek(BUFFER_BYTES)):
            for number, row in enumerate(_values(stream)):
                yield self.rows.document(f"{key}:{number}", row)
            return
        parse = json.loads if self.rows.is_template else _loads  # which rounds long integers
        start, stop = span or (0, 0)
        for number, line in enumerate(_lines(stream, start, stop), start=1):
            yield self._item(f"{key}@{start}:{number}" if start else f"{key}:{number}", line, parse)

    def spans(self, stream: io.BufferedReader, size: int, target: int) -> Sequence[Span]:
        """Lines that begin within so many bytes."""
        if _NOT_LINES.match(stream.peek(BUFFER_BYTES)):
            return ()
        return [Span(at, min(at + target, size)) for at in range(0, size, target)]

    def _item(self, key: str, line: bytes, parse: Callable[[bytes], object]) -> Item:
        if len(line) >= LONGEST_BYTES and not line.endswith(b"\n"):
            return Skipped(key, "too long a line", f"over {LONGEST_BYTES >> 20} MiB")
        try:
            try:
                row = parse(line)
            except ValueError:  # orjson refuses some of what json accepts, and does not say why
                row = json.loads(line.decode())
        except UnicodeDecodeError as error:
            return Skipped(key, "not UTF-8", f"byte {line[error.start]:#x}")
        except (ValueError, RecursionError) as error:
            return Skipped(key, "empty" if line.isspace() else "not JSON", str(error))
        return self.rows.document(key, row)


def _lines(stream: io.BufferedReader, start: int, stop: int) -> Iterator[bytes]:
    """Lines that begin in [start, stop), or all where stop is 0; of too long ones the beginning."""
    # A packed file of a megabyte may hold a line of a gigabyte, of which a part will do.
    read = partial(stream.readline, LONGEST_BYTES)
    at = stream.tell() if stop else 0  # behind a byte order mark
    if start:  # the line that begins before is another's
        stream.seek(start - 1)
        at = start - 1 + sum(map(len, _to_line_end(read)))
    while (at < stop or not stop) and (line := read()):
        at += len(line)
        if len(line) >= LONGEST_BYTES and not line.endswith(b"\n"):
            at += sum(map(len, _to_line_end(read)))
        yield line


def _to_line_end(read: Callable[[], bytes]) -> Iterator[bytes]:
    while part := read():
        yield part
        if part.endswith(b"\n"):
            return


def _values(stream: io.BufferedReader) -> Iterator[object]:
    decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
    parse = json.JSONDecoder().raw_decode
    text, number, ended = decode(stream.read(BUFFER_BYTES)).lstrip(), 0, False
    is_array = text.startswith("[")
    at = int(is_array)
    while True:
        at, end, wrong = _NEXT.search(text, at).start(), -1, "it ends too early"  # type: ignore[union-attr]
        if is_array and text.startswith("]", at):
            return
        try:
            value, end = parse(text, at)
        except ValueError as error:
            wrong = str(error)
        if end >= 0 and (end < len(text) or ended):
            yield value
            at, number = end, number + 1
        elif ended and at == len(text) and not is_array:
            return
        elif ended or len(text) - at > LONGEST_BYTES:
            raise ValueError(f"value {number} is not JSON: {wrong}")
        else:  # twice what did not suffice, so that a long value is parsed a few times only
            data = stream.read(max(BUFFER_BYTES, len(text) - at))
            text, at, ended = text[at:] + decode(data, final=not data), 0, not data
