"""From a file to the streams of text or tables in it: compression, archives and encodings.

What a file is, its first bytes say. A name that promises something else is an error: it is more
often a failed download (an error page called ``.gz``) than a choice.

Text in other encodings is turned into UTF-8 on the way, so that formats need to know only that.
Bytes that the encoding does not have become a byte that UTF-8 does not have: they spoil the
document in which they stand, and no other.
"""

import bz2
import codecs
import gzip
import io
import logging
import lzma
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import cache
from pathlib import PurePosixPath
from typing import IO, Any, NamedTuple, Self

from llm_train.data.corpus.found import FoundFile
from llm_train.errors import ConfigError, DataError, LLMTrainError, line_of
from llm_train.runtime.extras import library

BUFFER_BYTES = 1 << 20
_MAGIC = (  # what it is, where its signature stands, the signature
    ("gzip", 0, b"\x1f\x8b"),
    ("bzip2", 4, b"1AY&SY"),
    ("xz", 0, b"\xfd7zXZ\0"),
    ("zstd", 0, b"\x28\xb5\x2f\xfd"),
    ("zstd", 0, b"\x50\x2a\x4d\x18"),  # written by pzstd
    ("zip", 0, b"PK\x03\x04"),
    ("zip", 0, b"PK\x05\x06"),  # without members
    ("tar", 257, b"ustar"),
    ("Parquet", 0, b"PAR1"),
    ("Arrow", 0, b"ARROW1"),
    ("Arrow", 0, b"\xff\xff\xff\xff"),  # its streaming form, which ``datasets`` writes
)
_SUFFIXES = {
    **{".gz": "gzip", ".tgz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"},
    **{".zip": "zip", ".tar": "tar", ".parquet": "Parquet", ".arrow": "Arrow", ".feather": "Arrow"},
}
_DECOMPRESS: dict[str, Callable[[io.BufferedReader], Any]] = {
    "gzip": lambda stream: gzip.GzipFile(fileobj=stream),
    "bzip2": bz2.BZ2File,
    "xz": lzma.LZMAFile,
    "zstd": lambda stream: library("pyarrow", "data").CompressedInputStream(stream, "zstd"),
}


class Unpacked(NamedTuple):
    """What is left of a file when nothing is packed any more.

    Attributes:
        key: of the file, ``!`` and the name of the member.
        path: likewise, for messages.
        name: of the file or member, without the suffixes of compression.
        stream: its bytes, which may be looked at ahead.
        kind: ``Parquet``, ``Arrow`` or, for text, "".
    """

    key: str
    path: str
    name: str
    stream: io.BufferedReader
    kind: str

    def head(self, size: int) -> bytes:
        """The first bytes, which stay in the stream."""
        return self.stream.peek(size)[:size]


def contents(file: FoundFile, members: str) -> Iterator[Unpacked]:
    """The file, decompressed, or each member of the archive that it is.

    Args:
        file: on a disk or at a URL.
        members: pattern for the names of members.
    """
    with named_cause(file.path), opened(file) as stream:
        name = PurePosixPath(file.path).name
        content = _unpacked(Unpacked(file.key, file.path, name, stream, kind_of(stream)))
        if content.kind not in ("zip", "tar"):
            yield content
            return
        walk = _zip_members if content.kind == "zip" else _tar_members
        for name, member in walk(content.stream):
            hidden = any(part.startswith((".", "__MACOSX")) for part in name.split("/"))
            if not hidden and fnmatch(name, members):
                inner, path = io.BufferedReader(member, BUFFER_BYTES), f"{file.path}!{name}"
                with named_cause(path):
                    key = f"{file.key}!{name}"
                    yield _unpacked(Unpacked(key, path, name, inner, kind_of(inner)))


def opened(file: FoundFile) -> io.BufferedReader:
    """The file as it is stored."""
    if not file.remote:
        return io.BufferedReader(open(file.path, "rb", 0), BUFFER_BYTES)
    import fsspec

    return io.BufferedReader(fsspec.open(file.path, "rb").open(), BUFFER_BYTES)


@contextmanager
def named_cause(
    path: str, remedy: str = "repair it, download it again, or leave it out"
) -> Iterator[None]:
    """Makes whatever goes wrong with a file one line that names it."""
    try:
        yield
    except LLMTrainError:
        raise
    except Exception as error:  # each library has errors of its own
        cause = "it ends too early" if isinstance(error, EOFError) else line_of(error)
        raise DataError(f"{path} cannot be read: {cause}; {remedy}") from error


def kind_of(stream: io.BufferedReader) -> str:
    """What the first bytes say: the name of a compression, an archive or a table; "" is text."""
    head = stream.peek(512)
    return next((kind for kind, at, magic in _MAGIC if head[at:].startswith(magic)), "")


def _unpacked(content: Unpacked) -> Unpacked:
    """The content of compressed content, however often."""
    suffix = PurePosixPath(content.name).suffix.lower()
    expected, head = _SUFFIXES.get(suffix, content.kind), content.head(16)
    if head and content.kind != expected:
        raise DataError(
            f"{content.path} is {content.kind or 'not packed'}, and {suffix} says {expected}: "
            f"it begins with {head!r}; download it again, or name it as what it is"
        )
    if content.kind not in _DECOMPRESS:
        return content
    name = content.name[: -len(suffix)] if suffix in _SUFFIXES else content.name
    name += ".tar" if suffix == ".tgz" else ""
    stream = io.BufferedReader(_DECOMPRESS[content.kind](content.stream), BUFFER_BYTES)
    return _unpacked(content._replace(name=name, stream=stream, kind=kind_of(stream)))


def _zip_members(stream: IO[bytes]) -> Iterator[tuple[str, Any]]:
    with zipfile.ZipFile(stream) as archive:
        for member in archive.infolist():
            if not member.is_dir():
                with archive.open(member) as inner:
                    yield member.filename, inner


def _tar_members(stream: IO[bytes]) -> Iterator[tuple[str, Any]]:
    with tarfile.open(fileobj=stream, mode="r|", tarinfo=_TarHeader) as archive:  # without seeking
        while member := archive.next():
            if member.isfile() and (inner := archive.extractfile(member)):
                yield member.name, Converted(inner, bytes)  # which does not claim to seek
            # A kilobyte each, and there may be millions.
            archive.members = []  # type: ignore[attr-defined]


class _TarHeader(tarfile.TarInfo):
    """Of an archive that ends as it should: Python takes the end of the file for its end, too."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        """The next one."""
        try:
            return super().fromtarfile(archive)
        except (tarfile.EmptyHeaderError, tarfile.TruncatedHeaderError):  # type: ignore[attr-defined]
            raise EOFError from None


class Converted(io.RawIOBase):
    """Another stream's bytes, changed on the way.

    Args:
        stream: the other.
        convert: gets bytes as they come, and b"" at the end.
    """

    def __init__(self, stream: IO[bytes], convert: Callable[[bytes], bytes]) -> None:
        self._stream, self._convert = stream, convert
        self._ready, self._ended = memoryview(b""), False

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fills the buffer with what is there; 0 only at the end."""
        while not self._ready and not self._ended:
            data = self._stream.read(BUFFER_BYTES)
            self._ready, self._ended = memoryview(self._convert(data)), not data
        size = min(len(buffer), len(self._ready))
        buffer[:size], self._ready = self._ready[:size], self._ready[size:]
        return size


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
