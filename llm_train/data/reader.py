"""Token ids from shards through memory maps, each block of them verified before its first use.

Nothing is decoded: a window is a copy out of the page cache, and all workers and ranks of a host
share those pages. Windows cross the borders of shards. Each process verifies what it reads itself,
and again after a shard was closed to open another: it may not be the same file any more.
"""

from __future__ import annotations

import os
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llm_train.data.base import Ids
from llm_train.data.blocks import BLOCK_BYTES, blocks_of, read_sums
from llm_train.data.shards import check_size, little_endian
from llm_train.data.token_manifest import REMEDY, Manifest, sums_name
from llm_train.data.windows import Tokens
from llm_train.errors import DataError
from llm_train.runtime.maps import SafeCopies, map_file

# A map costs no descriptor, but its page tables grow with what was read of it: 2 KiB a megabyte.
_MOST_OPEN = 1024


@dataclass(slots=True)
class _Shard:
    """One mapped file; ``seen`` has a byte for each block, and ``unseen`` counts the zeros."""

    path: Path
    content: memoryview
    seen: bytearray
    unseen: int
    sums: npt.NDArray[np.uint32] | None

    def sees_new(self, start: int, stop: int) -> bool:
        """Whether a block of bytes ``start .. stop`` is still to be verified."""
        return self.seen.find(0, start // BLOCK_BYTES, blocks_of(stop)) >= 0


class ShardTokens(Tokens):
    """The shards of one split as one row of token ids."""

    def __init__(self, directory: Path, manifest: Manifest, split: str) -> None:
        # 32-bit ids are read as signed integers, which torch can index with.
        self._dtype = little_endian("uint16" if manifest.dtype == "uint16" else "int32")
        shards = manifest.splits[split].shards
        self._directory = directory
        self._names = [shard.name for shard in shards]
        self._borders = [0, *accumulate(shard.bytes for shard in shards)]  # in bytes
        self._vocab_size = manifest.vocab_size
        self._sums = directory / sums_name(split) if manifest.has_sums else None
        self._first_sums = [0, *accumulate(blocks_of(shard.bytes) for shard in shards)]
        self._open: dict[int, _Shard] = {}
        self._copies = SafeCopies()

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """As stored, in the byte order of this machine."""
        return self._dtype.newbyteorder("=")

    def __len__(self) -> int:
        return self._borders[-1] // self._dtype.itemsize

    def __getstate__(self) -> dict[str, object]:
        # A map would carry the tokens themselves into every DataLoader worker.
        return {**self.__dict__, "_open": {}, "_copies": SafeCopies()}

    def read(self, start: int, out: Ids) -> None:
        """Copies tokens ``start .. start + out.size`` into ``out``, across shards if need be."""
        out[:] = self.rows([start], out.size)[0]

    def rows(self, starts: Sequence[int], length: int) -> Ids:
        """One copy for all windows, whatever shards they lie in."""
        width = self._dtype.itemsize
        places, size = [start * width for start in starts], length * width
        try:
            joined = self._copies.join(self._pieces(places, size), len(places) * size)
        except OSError as error:
            for place in places:
                self._explain(place, place + size)
            raise DataError(f"{self._directory} was unreadable: {error}; {REMEDY}") from None
        return np.ndarray((len(places), length), self._dtype, joined).astype(self.dtype)

    def _pieces(self, places: Sequence[int], size: int) -> list[memoryview]:
        """``size`` bytes from each of ``places`` on."""
        borders, shards = self._borders, self._open
        pieces: list[memoryview] = []
        for start in places:
            number = bisect_right(borders, start) - 1
            first, shard = start - borders[number], shards.get(number)
            if (
                shard is None
                or start + size > borders[number + 1]
                or (shard.unseen and shard.sees_new(first, first + size))
            ):
                self._add(pieces, number, first, size)
            else:
                pieces.append(shard.content[first : first + size])
        return pieces

    def _add(self, pieces: list[memoryview], number: int, first: int, size: int) -> None:
        """Appends ``size`` bytes from a place in a shard on, of as many shards as they lie in."""
        while size:
            shard = self._open.get(number) or self._map(number)
            piece = shard.content[first : first + size]
            if shard.unseen:
                self._verify(shard, first, first + len(piece))
            pieces.append(piece)
            number, first, size = number + 1, 0, size - len(piece)

    def _map(self, number: int) -> _Shard:
        path, size = self._file(number)
        check_size(path, size)
        while len(self._open) >= _MOST_OPEN:  # windows come in random order: any is as good
            del self._open[next(iter(self._open))]
        count = blocks_of(size)
        sums = read_sums(self._sums, self._first_sums[number], count) if self._sums else None
        try:
            content = map_file(path, size)
        except OSError as error:
            raise DataError(f"{path} is unreadable: {error}; {REMEDY}") from None
        shard = self._open[number] = _Shard(path, content, bytearray(count), count, sums)
        return shard

    def _file(self, number: int) -> tuple[Path, int]:
        """Path and size of a shard."""
        size = self._borders[number + 1] - self._borders[number]
        return self._directory / self._names[number], size

    def _explain(self, start: int, stop: int) -> None:
        """Finds out why bytes ``start .. stop`` of the split cannot be copied."""
        for number in range(bisect_right(self._borders, start) - 1, len(self._names)):
            path, size = self._file(number)
            check_size(path, size)
            first = max(0, start - self._borders[number])
            _read(path, first, stop - start)
            if stop <= self._borders[number + 1]:
                return

    def _verify(self, shard: _Shard, start: int, stop: int) -> None:
        """Compares the blocks that bytes ``start .. stop`` lie in with what was written."""
        for number in range(start // BLOCK_BYTES, blocks_of(stop)):
            if shard.seen[number]:
                continue
            first = number * BLOCK_BYTES
            piece = shard.content[first : first + BLOCK_BYTES]
            _read(
                shard.path, first, len(piece)
            )  # page faults would read megabytes, or page by page
            block = self._copies.join([piece], len(piece))
            found = zlib.crc32(block.data)
            if shard.sums is not None and found != (expected := int(shard.sums[number])):
                raise DataError(
                    f"{shard.path} is damaged in block {number}, from byte {first} on: its CRC-32 "
                    f"is {found:08x}, not {expected:08x} as in {self._sums}; {REMEDY}"
                )
            ids = block.view(self._dtype.str.replace("i", "u"))
            if ids.max() >= self._vocab_size:
                place = int(np.argmax(ids >= self._vocab_size))
                raise DataError(
                    f"{shard.path} holds id {ids[place]} at byte {first + place * ids.itemsize}, "
                    f"and its vocabulary has {self._vocab_size} ids; {REMEDY}"
                )
            shard.seen[number] = 1
            shard.unseen -= 1


def _read(path: Path, first: int, count: int) -> None:
    """Reads bytes of a file into the page cache, or says why not."""
    try:
        with open(path, "rb", buffering=0) as file:
            os.pread(file.fileno(), count, first)
    except OSError as error:
        raise DataError(f"{path} is unreadable at {first}: {error.strerror}; {REMEDY}") from None
