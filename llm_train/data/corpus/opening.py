"""From a file to the streams of text or tables in it: compression and archives.

What a file is, its first bytes say. A name that promises something else is an error: it is more
often a failed download (an error page called ``.gz``) than a choice.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import PurePosixPath
from typing import BinaryIO, NamedTuple, Protocol, cast

from llm_train.data.corpus.found import FoundFile, line_of
from llm_train.errors import ConfigError, DataError, LLMTrainError

BUFFER_BYTES = 1 << 20
_PACKED_BYTES = 1 << 13  # at a time; zstd's worst case makes 256 MiB of so little
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
TABLES = ("Parquet", "Arrow")


class Content(NamedTuple):
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

    def must_be_text(self, reader: str) -> None:
        """Raises DataError where the first bytes say that it is a table or an archive."""
        if self.kind:
            raise DataError(
                f"{self.path} is {self.kind}, and {reader} reads text; "
                "take the corpus Files with format: auto, or leave it out of paths"
            )


def contents(file: FoundFile, members: str) -> Iterator[Content]:
    """The file, decompressed, or each member of the archive that it is.

    Args:
        file: on a disk or at a URL.
        members: pattern for the names of members.
    """
    with opened(file) as stream, named_cause(file.path):
        name = PurePosixPath(file.path).name
        content = _unpacked(Content(file.key, file.path, name, stream, ""))
        if content.kind not in ("zip", "tar"):
            yield content
            return
        walk = _zip_members if content.kind == "zip" else _tar_members
        for name, member in walk(content.stream):
            hidden = any(part.startswith((".", "__MACOSX")) for part in name.split("/"))
            if not hidden and fnmatch(name, members):
                path = f"{file.path}!{name}"
                with named_cause(path):
                    inner = Content(f"{file.key}!{name}", path, name, _buffered(member), "")
                    yield _unpacked(inner)


def opened(file: FoundFile) -> io.BufferedReader:
    """The file as it is stored."""
    with named_cause(file.path):
        if not file.remote:
            return _buffered(open(file.path, "rb", 0))
        import fsspec

        return _buffered(fsspec.open(file.path, "rb").open())


@contextmanager
def named_cause(path: str) -> Iterator[None]:
    """Makes whatever goes wrong with a file one line that names it."""
    try:
        yield
    except LLMTrainError:
        raise
    except EOFError:
        raise DataError(f"{path} ends too early; copy or download it again") from None
    except Exception as error:  # each library has errors of its own
        raise DataError(
            f"{path} cannot be read: {line_of(error)}; repair it, or leave it out of paths"
        ) from error


def kind_of(stream: io.BufferedReader) -> str:
    """What the first bytes say: the name of a compression, an archive or a table; "" is text."""
    head = stream.peek(512)
    return next((kind for kind, at, magic in _MAGIC if head[at:].startswith(magic)), "")


def _unpacked(content: Content) -> Content:
    """The content of compressed content, however often."""
    kind, suffix = kind_of(content.stream), PurePosixPath(content.name).suffix.lower()
    head = content.head(16)
    if head and suffix in _SUFFIXES and kind != _SUFFIXES[suffix]:
        raise DataError(
            f"{content.path} is {kind or 'not packed'}, and {suffix} says {_SUFFIXES[suffix]}: "
            f"it begins with {head!r}; download it again, or name it as what it is"
        )
    if kind not in DECOMPRESSORS:
        return content._replace(kind=kind)
    name = content.name[: -len(suffix)] if suffix in _SUFFIXES else content.name
    name += ".tar" if suffix == ".tgz" else ""
    stream = _buffered(DECOMPRESSORS[kind](content.stream))
    return _unpacked(content._replace(name=name, stream=stream))


def _buffered(stream: object) -> io.BufferedReader:
    return io.BufferedReader(cast(io.RawIOBase, stream), BUFFER_BYTES)


def _zip_members(stream: BinaryIO) -> Iterator[tuple[str, object]]:
    with zipfile.ZipFile(stream) as archive:
        for member in archive.infolist():
            if not member.is_dir():
                with archive.open(member) as inner:
                    yield member.filename, inner


def _tar_members(stream: BinaryIO) -> Iterator[tuple[str, object]]:
    with tarfile.open(fileobj=stream, mode="r|") as archive:  # without a look back
        while member := archive.next():
            if member.isfile() and (inner := archive.extractfile(member)):
                yield member.name, Converted(inner, bytes, BUFFER_BYTES)  # without seek
            # A kilobyte each, and there may be millions.
            archive.members = []  # type: ignore[attr-defined]


class Readable(Protocol):
    """What gives bytes."""

    def read(self, size: int, /) -> bytes:
        """So many at most."""


class Converted(io.RawIOBase):
    """Another stream's bytes, changed on the way.

    Args:
        stream: the other.
        convert: gets bytes as they come, and b"" at the end.
        size: bytes at a time.
    """

    def __init__(self, stream: Readable, convert: Callable[[bytes], bytes], size: int) -> None:
        self._stream, self._convert, self._size = stream, convert, size
        self._ready, self._at, self._ended = b"", 0, False

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fills the buffer with what is there; 0 only at the end."""
        while self._at == len(self._ready) and not self._ended:
            data = self._stream.read(self._size)
            self._ready, self._at, self._ended = self._convert(data), 0, not data
        part = self._ready[self._at : self._at + len(buffer)]
        buffer[: len(part)] = part
        self._at += len(part)
        return len(part)


class _Zstd:
    """Frames of zstd one after another, which end too early only with an error."""

    def __init__(self) -> None:
        try:
            import zstandard
        except ImportError:
            raise ConfigError(
                "files of zstd need the package zstandard; run pip install 'llm-train[data]'"
            ) from None
        self._start = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj
        self._frame = self._start()
        self._begun = False

    def __call__(self, data: bytes) -> bytes:
        if not data and self._begun:
            raise EOFError
        out = []
        while data:
            self._begun = True
            out.append(self._frame.decompress(data))
            data = b""
            if self._frame.eof:
                data, self._frame, self._begun = self._frame.unused_data, self._start(), False
        return b"".join(out)


DECOMPRESSORS: dict[str, Callable[[io.BufferedReader], object]] = {
    "gzip": lambda stream: gzip.GzipFile(fileobj=stream),
    "bzip2": bz2.BZ2File,
    "xz": lzma.LZMAFile,
    "zstd": lambda stream: Converted(stream, _Zstd(), _PACKED_BYTES),
}
