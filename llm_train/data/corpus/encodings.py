"""Text in other encodings, turned into UTF-8 on the way, so that formats need to know only that.

Bytes that the encoding does not have become a byte that UTF-8 does not have: they spoil the
document in which they stand, and no other.
"""

from __future__ import annotations

import codecs
import io
import logging
from functools import cache

from llm_train.data.corpus.opening import BUFFER_BYTES, Content, Converted
from llm_train.errors import ConfigError, DataError

_log = logging.getLogger(__name__)
_SAMPLE_BYTES = 1 << 16
MARKS = {  # longest first: UTF-32's begins with UTF-16's
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def _replace(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "\udcff", error.end


codecs.register_error("llm_train.spoiled", _replace)


def check_encoding(encoding: str) -> None:
    """Raises ConfigError unless Python knows it."""
    try:
        encoding == "auto" or codecs.lookup(encoding)
    except LookupError:
        raise ConfigError(
            f"encoding={encoding} is unknown; write auto, or a name such as utf-8, utf-16 or cp1252"
        ) from None


def is_utf8(encoding: str) -> bool:
    """Whether nothing needs to be converted."""
    return codecs.lookup(encoding).name in ("utf-8", "utf-8-sig")


def as_utf8(content: Content, encoding: str) -> io.BufferedReader:
    """The content's bytes in UTF-8, without a byte order mark.

    Raises:
        DataError: it begins with another encoding's mark, or nobody knows its encoding.
    """
    stream = content.stream
    mark = next((mark for mark in MARKS if stream.peek(4).startswith(mark)), b"")
    if encoding == "auto":
        encoding = MARKS.get(mark) or _guessed(content)
    if not is_utf8(encoding):
        decode = codecs.getincrementaldecoder(encoding)("llm_train.spoiled").decode

        def convert(data: bytes) -> bytes:
            text = decode(data, final=not data)
            return text.encode("utf-8", "surrogateescape")

        stream = io.BufferedReader(Converted(stream, convert, BUFFER_BYTES), BUFFER_BYTES)
    elif mark not in (b"", codecs.BOM_UTF8):
        raise DataError(
            f"{content.path} is not UTF-8: it begins with the mark of {MARKS[mark]}; "
            f"set encoding: {MARKS[mark]}, or auto where files differ"
        )
    if stream.peek(4).startswith(codecs.BOM_UTF8):
        _note("begin with a byte order mark, which is dropped", content.key)
        stream.read(len(codecs.BOM_UTF8))
    return stream


def _guessed(content: Content) -> str:
    sample = content.head(_SAMPLE_BYTES)
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample)  # its end may cut a character
        return "utf-8"
    except UnicodeDecodeError:
        pass
    try:
        import charset_normalizer
    except ImportError:
        best = None
    else:
        best = charset_normalizer.from_bytes(sample).best()
    if best is None:
        raise DataError(
            f"{content.path} is not UTF-8, and its encoding cannot be guessed; "
            "set encoding (guessing needs pip install charset-normalizer)"
        )
    _note(f"are read as {best.encoding}, a guess from their first bytes", content.key)
    return best.encoding


@cache
def _first(what: str) -> list[str]:
    return []


def _note(what: str, key: str) -> None:
    """Says it of the first file of a process."""
    if not (said := _first(what)):
        said.append(key)
        _log.warning("files %s; the first one is %s", what, key)
