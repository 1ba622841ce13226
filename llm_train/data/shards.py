"""Token ids on disk: raw little-endian integers in files of equal length, read through memory maps.

Nothing is decoded on reading: a window is one copy out of the page cache, and all workers and ranks
of a host share those pages. Shards exist only to keep files at a size that tools handle well; the
reader joins them, and windows cross their borders.
"""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from contextlib import AbstractContextManager
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from llm_train.data.base import Ids, SplitName
from llm_train.data.token_manifest import Manifest, StoredFile
from llm_train.data.windows import Tokens
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
    digest = hashlib.sha256()
    for chunk in disk.chunks(path, flush=True):
        digest.update(chunk)
    return StoredFile(name=path.name, bytes=path.stat().st_size, sha256=digest.hexdigest())


class ShardWriter(AbstractContextManager["ShardWriter"]):
    """Appends token ids of one split to ``SPLIT-00000.bin`` and its successors.

    Args:
        directory: exists.
        split: first part of the file names.
        dtype: stored integer.
        shard_tokens: length of every shard but the last.
    """

    def __init__(self, directory: Path, split: SplitName, dtype: str, shard_tokens: int) -> None:
        self.tokens = 0
        self.shards: list[StoredFile] = []
        self._directory = directory
        self._split = split
        self._dtype = little_endian(dtype)
        self._shard_tokens = shard_tokens
        self._all = hashlib.sha256()
        self._shard = hashlib.sha256()
        self._file: BinaryIO | None = None
        self._left = 0

    def add(self, ids: Ids) -> None:
        """Appends ids (any integer type, all below the vocabulary size)."""
        stored = ids.astype(self._dtype)
        while stored.size:
            if self._file is None:
                name = f"{self._split}-{len(self.shards):05d}.bin"
                self._file = (self._directory / name).open("wb")
                self._left = self._shard_tokens
                self._shard = hashlib.sha256()
            part, stored = stored[: self._left], stored[self._left :]
            data = part.tobytes()
            self._file.write(data)
            self._all.update(data)
            self._shard.update(data)
            self._left -= part.size
            self.tokens += part.size
            if self._left == 0:
                self._finish_shard()

    def finish(self) -> str:
        """Completes the last shard and returns the hash of all ids."""
        self._finish_shard()
        return self._all.hexdigest()

    def _finish_shard(self) -> None:
        if self._file is None:
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        path = Path(self._file.name)
        size = self._file.tell()
        self._file.close()
        self._file = None
        self.shards.append(StoredFile(name=path.name, bytes=size, sha256=self._shard.hexdigest()))

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()


class ShardTokens(Tokens):
    """The shards of one split as one row of token ids.

    Maps are opened on first use and left out of pickles: a pickled memory map would carry the
    tokens themselves into every DataLoader worker.
    """

    def __init__(self, directory: Path, manifest: Manifest, split: SplitName) -> None:
        self._dtype = little_endian(manifest.dtype)
        shards = manifest.splits[split].shards
        self._paths = [directory / shard.name for shard in shards]
        lengths = (shard.bytes // self._dtype.itemsize for shard in shards)
        self._borders = [0, *accumulate(lengths)]
        self._firsts = np.asarray(self._borders[:-1])
        self._maps: list[Ids] | None = None
        self._windows: dict[int, Ids] = {}

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """As stored; 32-bit ids as signed integers, which torch can index with."""
        return np.dtype(np.uint16 if self._dtype.itemsize == 2 else np.int32)

    def __len__(self) -> int:
        return self._borders[-1]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_maps": None, "_windows": {}}

    def read(self, start: int, out: Ids) -> None:
        """Copies tokens ``start .. start + out.size`` into ``out``, across shards if need be."""
        maps = self._open()
        done = 0
        shard = bisect_right(self._borders, start) - 1
        while done < out.size:
            first = self._borders[shard]
            part = maps[shard][start + done - first : start + out.size - first]
            out[done : done + part.size] = part
            done += part.size
            shard += 1

    def rows(self, starts: npt.NDArray[np.int64], length: int) -> Ids:
        """One gather per shard; windows that cross a border are put together by ``read``."""
        maps = self._open()
        if len(maps) == 1 and starts.size:
            if length not in self._windows:
                self._windows[length] = _every_window(maps[0], length)
            return np.asarray(self._windows[length][starts])
        out = np.empty((starts.size, length), dtype=self.dtype)
        shards = np.searchsorted(self._firsts, starts, side="right") - 1
        offsets = starts - self._firsts[shards]
        for row, shard, offset, start in zip(
            out, shards.tolist(), offsets.tolist(), starts.tolist(), strict=True
        ):
            part = maps[shard][offset : offset + length]
            if part.size == length:
                row[:] = part
            else:
                self.read(start, row)
        return out

    def _open(self) -> list[Ids]:
        if self._maps is None:
            # A plain array over the map: slicing np.memmap itself costs several times more.
            stored = self._dtype if self._dtype.itemsize == 2 else little_endian("int32")
            self._maps = [np.asarray(np.memmap(p, stored, mode="r")) for p in self._paths]
        return self._maps


def _every_window(tokens: Ids, length: int) -> Ids:
    """A view whose row i is the window at i: (N - length + 1, length), without a copy."""
    strides = (tokens.itemsize, tokens.itemsize)
    shape = (tokens.size - length + 1, length)
    return np.lib.stride_tricks.as_strided(tokens, shape, strides, writeable=False)


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
        path = directory / expected.name
        if not path.is_file():
            raise DataError(f"{path} is missing; prepare again with --force")
        if (size := path.stat().st_size) != expected.bytes:
            raise DataError(
                f"{path} has {size} bytes, its manifest says {expected.bytes}; "
                "prepare again with --force"
            )
        if checksums and describe_file(path).sha256 != expected.sha256:
            raise DataError(
                f"{path} is damaged: its sha256 is not the manifest's; prepare again with --force"
            )
    return manifest
