"""Token ids on disk: raw little-endian integers in files of equal length, read through memory maps.

Nothing is decoded on reading: a window is one copy out of the page cache, and all workers and ranks
of a host share those pages. Shards exist only to keep files at a size that tools handle well; the
reader joins them, and windows cross their borders.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import Counter
from contextlib import AbstractContextManager
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from llm_train.data.base import Ids, SplitName
from llm_train.data.token_manifest import Manifest, StoredFile, StoredSplit
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
    digest, size = hashlib.sha256(), 0
    for chunk in disk.chunks(path, flush=True):
        digest.update(chunk)
        size += len(chunk)
    return StoredFile(name=path.name, bytes=size, sha256=digest.hexdigest())


class ShardWriter(AbstractContextManager["ShardWriter"]):
    """Appends token ids of one split to ``SPLIT-00000.bin`` and its successors.

    Args:
        directory: exists.
        split: first part of the file names.
        dtype: stored integer.
        shard_tokens: length of every shard but the last.
    """

    def __init__(self, directory: Path, split: SplitName, dtype: str, shard_tokens: int) -> None:
        self._stem = directory / split
        self._dtype = little_endian(dtype)
        self._shard_tokens = shard_tokens
        self._counts = Counter(tokens=0, documents=0, text_bytes=0, decoded_bytes=0)
        self._digest = hashlib.sha256()
        self._shards: list[StoredFile] = []
        self._file: BinaryIO | None = None

    def add(self, ids: Ids, **counts: int) -> None:
        """Appends ids (any integer type, all below the vocabulary size).

        Args:
            ids: in one dimension.
            **counts: of ``StoredSplit``, to be added to what they were.
        """
        self._counts.update(counts, tokens=ids.size)
        stored = ids.astype(self._dtype)
        self._digest.update(stored.tobytes())
        while stored.size:
            if self._file is None:
                self._file = open(f"{self._stem}-{len(self._shards):05d}.bin", "wb")  # noqa: SIM115 - closed on exit
            left = self._shard_tokens - self._file.tell() // self._dtype.itemsize
            part, stored = stored[:left], stored[left:]
            self._file.write(part.tobytes())
            if part.size == left:
                self._finish_shard()

    def stored(self) -> StoredSplit:
        """What was written, once the writer has been left."""
        return StoredSplit(sha256=self._digest.hexdigest(), shards=self._shards, **self._counts)

    def __exit__(self, *_: object) -> None:
        self._finish_shard()

    def _finish_shard(self) -> None:
        if self._file is not None:
            self._file.close()
            self._shards.append(describe_file(Path(self._file.name)))
            self._file = None


class ShardTokens(Tokens):
    """The shards of one split as one row of token ids."""

    def __init__(self, directory: Path, manifest: Manifest, split: SplitName) -> None:
        # 32-bit ids are read as signed integers, which torch can index with.
        self._dtype = little_endian("uint16" if manifest.dtype == "uint16" else "int32")
        shards = manifest.splits[split].shards
        self._paths = [directory / shard.name for shard in shards]
        self._borders = [0, *accumulate(shard.bytes // self._dtype.itemsize for shard in shards)]
        self._firsts = np.asarray(self._borders[:-1])
        self._windows: dict[int, Ids] = {}

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """As stored, in the byte order of this machine."""
        return self._dtype.newbyteorder("=")

    def __len__(self) -> int:
        return self._borders[-1]

    def __getstate__(self) -> dict[str, object]:
        # A pickled memory map would carry the tokens themselves into every DataLoader worker.
        kept = {name: value for name, value in self.__dict__.items() if name != "_maps"}
        return {**kept, "_windows": {}}

    def read(self, start: int, out: Ids) -> None:
        """Copies tokens ``start .. start + out.size`` into ``out``, across shards if need be."""
        done = 0
        shard = bisect_right(self._borders, start) - 1
        while done < out.size:
            first = self._borders[shard]
            part = self._maps[shard][start + done - first : start + out.size - first]
            out[done : done + part.size] = part
            done += part.size
            shard += 1

    def rows(self, starts: npt.NDArray[np.int64], length: int) -> Ids:
        """One gather where there is one shard, else a copy a window."""
        if len(self._maps) == 1 and starts.size:
            if length not in self._windows:
                self._windows[length] = sliding_window_view(self._maps[0], length)
            return np.asarray(self._windows[length][starts])
        out = np.empty((starts.size, length), dtype=self.dtype)
        # All shards are looked up at once: one by one takes half as long again for each window.
        shards = np.searchsorted(self._firsts, starts, side="right") - 1
        offsets = starts - self._firsts[shards]
        places = zip(out, shards.tolist(), offsets.tolist(), starts.tolist(), strict=True)
        for row, shard, offset, start in places:
            part = self._maps[shard][offset : offset + length]
            if part.size == length:
                row[:] = part
            else:  # it crosses into the next shard
                self.read(start, row)
        return out

    @cached_property
    def _maps(self) -> list[Ids]:
        # A plain array over the map: slicing np.memmap itself costs several times more.
        return [np.asarray(np.memmap(path, self._dtype, mode="r")) for path in self._paths]


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
            damage = "is missing"
        elif (size := path.stat().st_size) != expected.bytes:
            damage = f"has {size} bytes, its manifest says {expected.bytes}"
        elif checksums and describe_file(path).sha256 != expected.sha256:
            damage = "is damaged: its sha256 is not the manifest's"
        else:
            continue
        raise DataError(f"{path} {damage}; prepare again with --force")
    return manifest
