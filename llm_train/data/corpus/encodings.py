"""Text in other encodings, turned into UTF-8 on the way, so that formats need to know only that.

Bytes that the encoding does not have become a byte that UTF-8 does not have: they spoil the
document in which they stand, and no other.
"""

from __future__ import annotations

import codecs
import io
import logging
from functools import cache

from llm_train.data.corpus.opening import BUFFER_BYTES, Converted, Unpacked
from llm_train.errors import ConfigError, DataError
from llm_train.runtime.extras import library

_log = logging.getLogger(__name__)
_SAMPLE_BYTES = 1 << 16
MARKS = {  # longest first: UTF-32's begins with UTF-16's
    **{codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF8: "utf-8"},
    **{codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"},
}
codecs.register_error("llm_train.spoiled", lambda error: ("\udcff", error.end))  # type: ignore[attr-defined]


def is_utf8(encoding: str) -> bool:
    """Whether nothing needs to be converted.

    Raises:
        ConfigError: Python does not know the encoding.
    """
    try:
        return encoding != "auto" and codecs.lookup(encoding).name in ("utf-8", "utf-8-sig")
    except LookupError:
        raise ConfigError(
            f"encoding={encoding} is unknown; write auto, or a name such as utf-8, utf-16 or cp1252"
        ) from None


def as_utf8(content: Unpacked, encoding: str) -> io.BufferedReader:
    """The content's bytes in UTF-8, without a byte order mark.

    Raises:
        DataError: it begins with another encoding's mark, or nobody knows its encoding.
    """
    stream = content.stream
    mark = next((mark for mark in MARKS if content.head(4).startswith(mark)), b"")
    if encoding == "auto":
        encoding = MARKS.get(mark) or _guessed(content)
    if not is_utf8(encoding):
        decode = codecs.getincrementaldecoder(encoding)("llm_train.spoiled").decode

        def convert(data: bytes) -> bytes:
            return decode(data, final=not data).encode("utf-8", "surrogateescape")

        stream = io.BufferedReader(Converted(stream, convert), BUFFER_BYTES)
    elif mark not in (b"", codecs.BOM_UTF8):
        raise DataError(
            f"{content.path} is not UTF-8: it begins with the mark of {MARKS[mark]}; "
            f"set encoding: {MARKS[mark]}, or auto where files differ"
        )
    if stream.peek(4).startswith(codecs.BOM_UTF8):
        _note("begin with a byte order mark, which is dropped")
        stream.read(len(codecs.BOM_UTF8))
    return stream


def _guessed(content: Unpacked) -> str:
    sample = content.head(_SAMPLE_BYTES)
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample)  # its end may cut a character
        return "utf-8"
    except UnicodeDecodeError:
        pass
    if (best := library("charset_normalizer", "data").from_bytes(sample).best()) is None:
        raise DataError(f"{content.path} has an encoding that cannot be guessed; set encoding")
    _note(f"are read as {best.encoding}, a guess from the first bytes of each")
    return str(best.encoding)


@cache
def _note(what: str) -> None:
    """Says it once in a process."""
    _log.warning("some files of the corpus %s", what)
