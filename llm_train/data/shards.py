"""Token ids on disk: raw little-endian integers in files of bounded length, and how to write them.

Shards exist only to keep files at a size that tools handle well: the reader joins them. Alongside
the shards of a split lies one file with a CRC-32 of each of their blocks, which a reader looks up
when it first comes to a block; the manifest, which is read at every start, does not hold them.
Windows are read in random order, so a block is small: 64 KiB, no more than the kernel reads ahead
anyway, 16 microseconds of CRC-32, which finds every flip of one or two bits and every burst of up
to 32.

Where documents lie is in two more files: ``SPLIT.documents`` has two integers for each document,
the position of its first token and the end of its key in ``SPLIT.keys``, where keys follow one
another.
"""

import hashlib
import os
import stat
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from llm_train.data.base import Ids
from llm_train.data.token_manifest import REMEDY, Manifest, StoredFile, StoredSplit
from llm_train.data.token_source import Documents
from llm_train.errors import DataError
from llm_train.runtime import disk

TOKENIZER = "tokenizer.json"
TOKEN_BYTES = "token_bytes.npy"


def dtype_for(vocab_size: int) -> str:
    """The smallest stored integer that holds every id."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def little_endian(dtype: str) -> np.dtype[np.generic]:
    """The numpy type of a stored integer, the same bytes on every machine."""
    return np.dtype(dtype).newbyteorder("<")


def describe_file(path: Path) -> StoredFile:
    """Reads a finished file once for its size and checksum, and waits until it is on disk."""
    digest, size = hashlib.sha256(), 0
    for chunk in disk.chunks(path, flush=True):
        digest.update(chunk)
        size += len(chunk)
    return StoredFile(name=path.name, bytes=size, sha256=digest.hexdigest())


class ShardWriter(AbstractContextManager["ShardWriter"]):
    """Appends token ids of one split to ``SPLIT-00000.bin`` and its successors.

    A file gets its name when it is whole, so that two processes may write the same one.

    Args:
        directory: exists.
        split: first part of the file names.
        vocab_size: ids are below it.
        shard_tokens: length of every shard but the last.
        unit: number in the name of the first file; those after it have a second number.
    """

    def __init__(
        self, directory: Path, split: str, vocab_size: int, shard_tokens: int, unit: int = 0
    ) -> None:
        self._stem = directory / f"{split}-{unit:05d}"
        self._vocab_size = vocab_size
        self._dtype = little_endian(dtype_for(vocab_size))
        self._shard_tokens = shard_tokens
        self._counts = Counter(tokens=0, documents=0, text_bytes=0, decoded_bytes=0)
        self._shards: list[StoredFile] = []
        self._file: BinaryIO | None = None

    @property
    def tokens(self) -> int:
        """Written so far."""
        return self._counts["tokens"]

    def add(self, ids: Ids, **counts: int) -> None:
        """Appends ids of any integer type.

        Args:
            ids: in one dimension.
            **counts: of ``StoredSplit``, to be added to what they were.

        Raises:
            DataError: an id is not one of the vocabulary.
        """
        if ids.size and not 0 <= ids.min() <= ids.max() < self._vocab_size:
            wrong = int(np.argmax((ids < 0) | (ids >= self._vocab_size)))
            raise DataError(
                f"token {self._counts['tokens'] + wrong} of {self._stem} is id {ids[wrong]}, and "
                f"the vocabulary has {self._vocab_size} ids; use the tokenizer that made the ids"
            )
        self._counts.update(counts, tokens=ids.size)
        stored = ids.astype(self._dtype)
        while stored.size:
            if self._file is None:
                self._file = open(disk.own_name(self._path()), "wb")  # noqa: SIM115 - closed on exit
            left = self._shard_tokens - self._file.tell() // self._dtype.itemsize
            part, stored = stored[:left], stored[left:]
            self._file.write(part.tobytes())
            if part.size == left:
                self._finish_shard()

    def stored(self) -> StoredSplit:
        """What was written, once the writer has been left."""
        return StoredSplit(sha256=hash_of(self._shards), shards=self._shards, **self._counts)

    def __exit__(self, *_: object) -> None:
        self._finish_shard()

    def _path(self) -> Path:
        number = len(self._shards)
        return Path(f"{self._stem}{f'_{number:05d}' if number else ''}.bin")

    def _finish_shard(self) -> None:
        if self._file is not None:
            self._file.close()
            path = self._path()
            finished = describe_file(Path(self._file.name))
            os.replace(self._file.name, path)
            self._shards.append(replace(finished, name=path.name))
            self._file = None


def hash_of(shards: Iterable[StoredFile]) -> str:
    """The hash of a split: over sizes and hashes of its shards, in order."""
    lines = "".join(f"{shard.bytes} {shard.sha256}\n" for shard in shards)
    return hashlib.sha256(lines.encode()).hexdigest()


def verify(directory: Path, checksums: bool = False) -> Manifest:
    """Checks that every file of a directory of token shards is what its manifest says.

    Args:
        directory: of the shards.
        checksums: read every byte; otherwise only sizes are compared.

    Raises:
        DataError: no manifest, or a file that is missing or damaged, by name.
    """
    manifest = Manifest.load(directory)
    for expected in manifest.files:
        path = os.path.join(directory, expected.name)  # 60,000 of them, and Path is slow
        check_size(path, expected.bytes)
        if checksums:
            check_content(directory, expected)
    return manifest


def check_content(directory: Path, expected: StoredFile) -> None:
    """Reads a file and compares it with what the manifest says.

    Raises:
        DataError: it differs.
    """
    if describe_file(directory / expected.name).sha256 != expected.sha256:
        damaged = f"{directory / expected.name} is damaged: its sha256 is not the manifest's"
        raise DataError(f"{damaged}; {REMEDY}")


def check_size(path: str | Path, expected: int) -> None:
    """Compares a file's size with what the manifest says.

    Raises:
        DataError: it differs, or there is no such file.
    """
    try:
        found = os.stat(path)
    except FileNotFoundError:
        damage = "is missing"
    except OSError as error:
        damage = f"is unreadable: {error.strerror}"
    else:
        if found.st_size == expected and stat.S_ISREG(found.st_mode):
            return
        damage = f"has {found.st_size} bytes, its manifest says {expected}"
    raise DataError(f"{path} {damage}; {REMEDY}")


BLOCK_BYTES = 1 << 16
_STORED = np.dtype("<u4")


def blocks_of(size: int) -> int:
    """Blocks of a file, the last of which may be shorter."""
    return -(-size // BLOCK_BYTES)


def sums_of(directory: Path, shards: Iterable[StoredFile]) -> npt.NDArray[np.uint32]:
    """Reads finished shards for a CRC-32 of each block of them, one shard after another."""
    sums = [
        zlib.crc32(chunk[start : start + BLOCK_BYTES])
        for shard in shards
        for chunk in disk.chunks(directory / shard.name)  # a multiple of a block
        for start in range(0, len(chunk), BLOCK_BYTES)
    ]
    return np.array(sums, dtype=_STORED)


def read_sums(path: Path, first: int, count: int) -> npt.NDArray[np.uint32]:
    """The checksums of blocks ``first`` .. ``first + count``.

    Raises:
        DataError: they cannot be read.
    """
    try:
        sums = np.fromfile(path, _STORED, count, offset=first * _STORED.itemsize)
    except OSError as error:
        raise DataError(f"{path} is unreadable: {error}; {REMEDY}") from None
    if sums.size != count:
        raise DataError(f"{path} has no checksum of block {first + sums.size}; {REMEDY}")
    return sums


def starts_name(split: str) -> str:
    """The file with the positions of a split's documents."""
    return f"{split}.documents"


def keys_name(split: str) -> str:
    """The file with the keys of a split's documents."""
    return f"{split}.keys"


class StoredDocuments(Documents):
    """Those of prepared tokens, read where they are asked for.

    Args:
        directory: of the shards.
        split: its name.
        count: documents in it.
        tokens: in it.
        verify: raises DataError where a file, by its name, is not what was written.
    """

    def __init__(
        self,
        directory: Path,
        split: str,
        count: int,
        tokens: int,
        verify: Callable[[str], None],
    ) -> None:
        super().__init__(count, tokens)
        self._verify, self._verified = verify, set[Path]()
        self._starts, self._keys = directory / starts_name(split), directory / keys_name(split)

    def starts(self) -> npt.NDArray[np.int64]:
        """Read as they are asked for."""
        return self._table()[:, 0]

    def _key(self, number: int) -> str:
        first, stop = (int(self._table()[n, 1]) if n >= 0 else 0 for n in (number - 1, number))
        self._require(self._keys)
        with open(self._keys, "rb") as file:
            file.seek(first)
            return file.read(stop - first).decode("utf-8", "surrogateescape")

    def _table(self) -> npt.NDArray[np.int64]:
        self._require(self._starts)
        if not self._count:
            return np.zeros((0, 2), np.int64)
        return np.memmap(self._starts, "<i8", "r", shape=(self._count, 2))

    def _require(self, path: Path) -> None:
        """Reads all of a file once, before its first use."""
        if path not in self._verified:
            self._verify(path.name)
            self._verified.add(path)
