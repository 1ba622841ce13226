"""Token ids from shards through memory maps, each block of them verified before its first use.

Nothing is decoded: a window is a copy out of the page cache, and all workers and ranks of a host
share those pages. Windows cross the borders of shards. Each process verifies what it reads itself,
and again after a shard was closed to open another: it may not be the same file any more.
"""

import os
import zlib
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llm_train.data.base import Ids
from llm_train.data.shards import BLOCK_BYTES, blocks_of, check_size, little_endian, read_sums
from llm_train.data.token_manifest import REMEDY, Manifest, sums_name
from llm_train.data.windows import Tokens
from llm_train.errors import DataError
from llm_train.runtime.maps import SafeCopies, map_file

# A map costs no descriptor, but its page tables grow with what was read of it: 2 KiB a megabyte.
_MOST_OPEN = 1024


@dataclass(slots=True)
class Shard:
    """The tokens of a mapped file, stretch ``number`` of a row, which begin at byte ``first``.

    ``seen`` has a byte for each block, and ``unseen`` counts the zeros.
    """

    number: int
    path: Path
    first: int
    content: memoryview
    seen: bytearray
    unseen: int
    sums: npt.NDArray[np.uint32] | None


class MappedTokens(Tokens):
    """Stretches of files as one row of token ids.

    Args:
        sizes: of the stretches, in bytes.
        dtype: of the ids in them.
        vocab_size: ids are below it.
    """

    remedy = REMEDY

    def __init__(self, sizes: Iterable[int], dtype: str, vocab_size: int) -> None:
        # 32-bit ids are read as signed integers, which torch can index with.
        self._dtype = little_endian("int32" if dtype == "uint32" else dtype)
        self._borders = [0, *accumulate(sizes)]  # in bytes
        self._vocab_size = vocab_size
        self._open: dict[int, Shard] = {}
        # What needs no look at its blocks any more: of thousands of shards, few lie in the caches.
        self._verified: list[memoryview | None] = [None] * (len(self._borders) - 1)
        self._copies = SafeCopies()

    @abstractmethod
    def _file(self, number: int) -> tuple[Path, int, int]:
        """The file of a stretch, once it was checked; the first byte in it, and how many to map."""

    def _sums(self, number: int) -> npt.NDArray[np.uint32] | None:
        """CRC-32 of the blocks of a stretch, where they are known."""
        return None

    def __len__(self) -> int:
        return self._borders[-1] // self._dtype.itemsize

    def __getstate__(self) -> dict[str, object]:
        # A map would carry the tokens themselves into every DataLoader worker.
        verified = [None] * len(self._verified)
        return {**self.__dict__, "_open": {}, "_verified": verified, "_copies": SafeCopies()}

    def rows(self, starts: Sequence[int], length: int) -> Ids:
        """One copy for all windows, whatever shards they lie in, across them if need be."""
        width = self._dtype.itemsize
        places, size = [start * width for start in starts], length * width
        try:
            joined = self._copies.join(self._pieces(places, size), len(places) * size)
        except OSError as error:
            for place in places:
                self._explain(place, place + size)
            path, *_ = self._file(bisect_right(self._borders, places[0]) - 1)
            raise DataError(f"{path.parent} was unreadable: {error}; {self.remedy}") from None
        # As stored, in the byte order of this machine, or what torch can index with.
        wanted = np.uint16 if width == 2 else np.int32
        return np.ndarray((len(places), length), self._dtype, joined).astype(wanted)

    def _pieces(self, places: Sequence[int], size: int) -> list[memoryview]:
        """``size`` bytes from each of ``places`` on."""
        borders, verified = self._borders, self._verified
        pieces: list[memoryview] = []
        for start in places:
            number = bisect_right(borders, start) - 1
            first, content = start - borders[number], verified[number]
            if content is None:
                self._add(pieces, number, first, size)
                continue
            piece = content[first : first + size]
            pieces.append(piece)
            if len(piece) < size:
                self._add(pieces, number + 1, 0, size - len(piece))
        return pieces

    def _add(self, pieces: list[memoryview], number: int, first: int, size: int) -> None:
        """Appends ``size`` bytes from a place in a shard on, of as many shards as they lie in."""
        while size:
            shard = self._open.get(number) or self._map(number)
            stop = min(first + size, len(shard.content))
            if shard.unseen:
                self._verify(shard, first, stop)
            pieces.append(shard.content[first:stop])
            number, first, size = number + 1, 0, size - (stop - first)

    def _map(self, number: int) -> Shard:
        path, first, size = self._file(number)
        while len(self._open) >= _MOST_OPEN:  # windows come in random order: any is as good
            self._close(next(iter(self._open)))
        try:
            content = map_file(path, first + size)[first:]
        except OSError as error:
            raise DataError(f"{path} is unreadable: {error}; {self.remedy}") from None
        count, sums = blocks_of(size), self._sums(number)
        shard = Shard(number, path, first, content, bytearray(count), count, sums)
        self._open[number] = shard
        return shard

    def _close(self, number: int) -> None:
        """Lets go of a shard's map."""
        del self._open[number]
        self._verified[number] = None

    def _explain(self, start: int, stop: int) -> None:
        """Finds out why bytes ``start .. stop`` of the row cannot be copied."""
        for number in range(bisect_right(self._borders, start) - 1, len(self._borders) - 1):
            path, first, _ = self._file(number)
            place = first + max(0, start - self._borders[number])
            self._read(path, place, stop - start)
            if stop <= self._borders[number + 1]:
                return

    def _verify(self, shard: Shard, start: int, stop: int) -> None:
        """Compares the blocks that bytes ``start .. stop`` lie in with what was written."""
        place, end = start // BLOCK_BYTES, blocks_of(stop)
        while (number := shard.seen.find(0, place, end)) >= 0:
            first = shard.first + number * BLOCK_BYTES
            block = self._block(shard, number)
            found = zlib.crc32(block.data)
            if shard.sums is not None and found != (expected := int(shard.sums[number])):
                raise DataError(
                    f"{shard.path} is damaged in block {number}, from byte {first} on: its CRC-32 "
                    f"is {found:08x}, not {expected:08x} as was written; {self.remedy}"
                )
            self._check_ids(shard.path, first, block.view(self._dtype))
            shard.seen[number] = 1
            shard.unseen -= 1
        if not shard.unseen:
            self._verified[shard.number] = shard.content

    def _block(self, shard: Shard, number: int) -> npt.NDArray[np.uint8]:
        """A block of a shard, until the next copy."""
        first = number * BLOCK_BYTES
        piece = shard.content[first : first + BLOCK_BYTES]
        # Page faults would read megabytes, or page by page.
        self._read(shard.path, shard.first + first, len(piece))
        return self._copies.join([piece], len(piece))

    def _check_ids(self, path: Path, first: int, found: Ids) -> None:
        ids = found.view(found.dtype.str.replace("i", "u"))  # negative ones are large
        if ids.max() >= self._vocab_size:
            place = int(np.argmax(ids >= self._vocab_size))
            raise DataError(
                f"{path} holds id {ids[place]} at byte {first + place * ids.itemsize}, "
                f"and its vocabulary has {self._vocab_size} ids; {self.remedy}"
            )

    def _read(self, path: Path, first: int, count: int) -> None:
        """Reads bytes of a file into the page cache, or says why not."""
        try:
            with open(path, "rb", buffering=0) as file:
                os.pread(file.fileno(), count, first)
        except OSError as error:
            raise DataError(
                f"{path} is unreadable at {first}: {error.strerror}; {self.remedy}"
            ) from None


class ShardTokens(MappedTokens):
    """The shards of one split as one row of token ids."""

    def __init__(self, directory: Path, manifest: Manifest, split: str) -> None:
        shards = manifest.splits[split].shards
        super().__init__((shard.bytes for shard in shards), manifest.dtype, manifest.vocab_size)
        self._directory = directory
        self._names = [shard.name for shard in shards]
        self._sums_file = directory / sums_name(split)
        self._first_sums = [0, *accumulate(blocks_of(shard.bytes) for shard in shards)]

    def _file(self, number: int) -> tuple[Path, int, int]:
        path = self._directory / self._names[number]
        size = self._borders[number + 1] - self._borders[number]
        check_size(path, size)
        return path, 0, size

    def _sums(self, number: int) -> npt.NDArray[np.uint32]:
        first, stop = self._first_sums[number : number + 2]
        return read_sums(self._sums_file, first, stop - first)
