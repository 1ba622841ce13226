"""Token shards behind a URL, of which each block is fetched when it is needed and kept nearby.

A shard's place in the cache is a sparse file of its size, and a block of it is there when its
CRC-32 is right: the processes of a host, and runs after a crash, share a cache without any record
of what is in it. Windows come in an order that is known in advance, so that those of the next
batches are fetched meanwhile, each as the one or two blocks of 64 KiB that it lies in.
"""

from __future__ import annotations

import logging
import os
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import numpy.typing as npt

from llm_train.data.base import TRAIN, Ids
from llm_train.data.reader import Shard, ShardTokens
from llm_train.data.remote_folder import SPACE, RemoteFolder
from llm_train.data.shards import BLOCK_BYTES, blocks_of, read_sums
from llm_train.data.token_manifest import Manifest
from llm_train.data.windows import TrainWindows
from llm_train.errors import DataError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_log = logging.getLogger(__name__)
_PATIENCE_SECONDS = 30
_AHEAD = 16  # batches, or blocks where they are read one after another
_MOST_UNDER_WAY = 1 << 14
_ATTEMPTS = 16
_SWEEPS = 32  # in the time in which the cache is filled once


class RemoteShards(ShardTokens):
    """Remote shards of one split as one row of token ids."""

    def __init__(self, remote: RemoteFolder, manifest: Manifest, split: str) -> None:
        super().__init__(remote.folder, manifest, split)
        self._remote = remote
        self._following = 0 if split == TRAIN else _AHEAD  # others are read from first to last
        self._under_way: dict[tuple[int, int], Future[None]] = {}
        self._inodes: dict[int, int] = {}
        self._unswept = self._process = 0

    def __getstate__(self) -> dict[str, object]:
        return {**super().__getstate__(), "_under_way": {}, "_inodes": {}}

    def want(self, starts: Iterable[int], length: int) -> None:
        """Begins to fetch what windows that will be read lie in."""
        width = self._dtype.itemsize
        for start in starts:
            first, stop = start * width, (start + length) * width
            number = bisect_right(self._borders, first) - 1
            while first < stop:
                before, after = self._borders[number : number + 2]
                end = min(stop, after)
                for block in range((first - before) // BLOCK_BYTES, blocks_of(end - before)):
                    self._begin(number, block)
                number, first = number + 1, end

    def _begin(self, number: int, block: int) -> Future[None] | None:
        """Begins to fetch a block unless it has been seen."""
        self._remote.connect()
        if self._process != os.getpid():  # after a fork nobody works for these any more
            self._process, self._under_way = os.getpid(), {}
        shard, key = self._open.get(number), (number, block)
        if shard is not None and shard.seen[block]:
            return None
        if key not in self._under_way:
            if len(self._under_way) > _MOST_UNDER_WAY:  # of windows that were never read
                self._under_way = {k: v for k, v in self._under_way.items() if not v.done()}
            self._under_way[key] = self._remote.pool.submit(self._fetch, number, block)
        return self._under_way[key]

    def _fetch(self, number: int, block: int) -> None:
        """Puts a block into the cache unless it is there; in a thread."""
        name, size = self._names[number], self._borders[number + 1] - self._borders[number]
        first, stop = block * BLOCK_BYTES, min((block + 1) * BLOCK_BYTES, size)
        [expected] = read_sums(self._sums_file, self._first_sums[number] + block, 1)

        def fetched(fs: AbstractFileSystem, source: str) -> bytes:
            content: bytes = fs.cat_file(source, start=first, end=stop)
            if len(content) > stop - first:
                raise OSError("the server sends whole files, and must answer requests for ranges")
            if zlib.crc32(content) != expected:
                raise OSError(f"bytes {first} to {stop} are damaged: another CRC-32 was written")
            return content

        with self._sparse(number) as file:
            if zlib.crc32(os.pread(file.fileno(), stop - first, first)) != expected:
                os.pwrite(file.fileno(), self._remote.read(name, fetched), first)

    @contextmanager
    def _sparse(self, number: int) -> Iterator[BinaryIO]:
        """The file of a shard in the cache, with holes where nothing was fetched."""
        path = self._directory / self._names[number]
        size = self._borders[number + 1] - self._borders[number]
        try:
            with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b", buffering=0) as file:
                if os.fstat(file.fileno()).st_size != size:
                    file.truncate(size)
                yield file
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}; {SPACE}") from None

    def _file(self, number: int) -> tuple[Path, int, int]:
        with self._sparse(number) as file:
            found = os.fstat(file.fileno())
            self._inodes[number] = found.st_ino
            return self._directory / self._names[number], 0, found.st_size

    def _map(self, number: int) -> Shard:
        for _ in range(_ATTEMPTS):
            with suppress(DataError):  # the file was removed in this moment
                return super()._map(number)
        return super()._map(number)

    def _read(self, path: Path, first: int, count: int) -> None:
        """Nothing: the pages have just been written or read, and the file may be gone."""

    def _block(self, shard: Shard, number: int) -> npt.NDArray[np.uint8]:
        """A block, as soon as it is in the cache."""
        for block in range(number, min(number + 1 + self._following, len(shard.seen))):
            self._begin(shard.number, block)
        self._unswept += BLOCK_BYTES
        if self._unswept > self._remote.limit // _SWEEPS:
            self._sweep()
        for _ in range(_ATTEMPTS):
            self._wait(shard, number)
            if not self._is_current(shard.number):
                # Somebody has made room. What was copied out of the old file is right.
                new = self._map(shard.number)
                shard.content, shard.seen, shard.unseen = new.content, new.seen, new.unseen
                self._open[shard.number] = shard
            found = super()._block(shard, number)
            if shard.sums is None or zlib.crc32(found.data) == shard.sums[number]:
                break  # or it was written into a file that was removed meanwhile
        return found

    def _wait(self, shard: Shard, number: int) -> None:
        future = self._begin(shard.number, number)
        while future is not None:
            try:
                future.result(_PATIENCE_SECONDS)
            except TimeoutError:
                url = f"{self._remote.url}/{shard.path.name}"
                _log.warning("waiting for %s: %s", url, self._remote.trouble or "it is slow")
            else:
                break
        self._under_way.pop((shard.number, number), None)

    def _is_current(self, number: int) -> bool:
        """Whether the file that is mapped still has its name."""
        with suppress(FileNotFoundError):
            return (self._directory / self._names[number]).stat().st_ino == self._inodes[number]
        return False

    def _sweep(self) -> None:
        """Removes files until the rest is within the limit, and lets go of those that are gone."""
        self._unswept, found = 0, list[tuple[int, str]]()
        with os.scandir(self._directory) as entries:
            for each in entries:
                with suppress(FileNotFoundError):  # another rank makes room at the same time
                    found.append((each.stat().st_blocks * 512, each.path))
        used = sum(size for size, _ in found)
        for size, path in sorted(found, reverse=True):  # in a random order none is better kept
            if used > self._remote.limit and path.endswith(".bin"):
                with suppress(FileNotFoundError):
                    os.unlink(path)
                used -= size
        for number in [number for number in self._open if not self._is_current(number)]:
            self._close(number)


class AheadWindows(TrainWindows):
    """Training windows, of which those of the next batches are fetched while one is used.

    A rank's batches come in equal steps, so that two of them tell the rest.
    """

    together = 1  # the first batch waits for no other

    def __init__(self, tokens: RemoteShards, sequence: int, seed: int, fingerprint: str) -> None:
        super().__init__(tokens, sequence, seed, fingerprint)
        self._shards, self._last, self._step = tokens, -1, 0

    def batch(self, indices: npt.ArrayLike) -> Ids:
        """As of the base, after the next batches were asked for."""
        numbers = np.asarray(indices, dtype=np.int64).reshape(-1)
        first = int(numbers[0])
        step, before = first - self._last if self._last >= 0 else 0, self._step
        self._last, self._step = first, step
        for turn in range(_AHEAD if step == before else 1, _AHEAD + 1 if step > 0 else 0):
            self._shards.want(self.located(numbers + turn * step), self._sequence + 1)
        return super().batch(numbers)
