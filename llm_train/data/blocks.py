"""Checksums of the blocks of a split's shards, in one file that is read a few bytes at a time.

A block is what a reader verifies when it first comes to it. Windows are read in random order, so it
is small: 64 KiB, no more than the kernel reads ahead anyway, 16 microseconds of CRC-32, which finds
every flip of one or two bits and every burst of up to 32.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llm_train.data.token_manifest import REMEDY, StoredFile
from llm_train.errors import DataError
from llm_train.runtime import disk

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


def write_sums(path: Path, shards: Iterable[StoredFile]) -> None:
    """Writes the checksums of shards that lie next to ``path``."""
    sums_of(path.parent, shards).tofile(path)


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
