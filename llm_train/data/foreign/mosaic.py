"""Shards of MosaicML's ``streaming`` (MDS), in which the ids of a sample lie between other bytes.

A shard is the number of its samples, where they begin and the last one ends (32-bit each), a copy
of its entry in ``index.json``, and the samples: the size of the column, unless it is fixed, and the
column. An ``ndarray`` of unknown shape begins with the number of its dimensions, and these. Where
ids lie is therefore looked up when a shard is opened. Samples follow one another in the row;
nothing says whether they are documents.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from llm_train.data.base import Ids
from llm_train.data.foreign.base import FileStretch, FileTokens, ForeignTokens, Starts
from llm_train.data.foreign.litdata import read_index
from llm_train.data.reader import Shard
from llm_train.errors import DataError


@dataclass(frozen=True, kw_only=True)
class MosaicTokens(ForeignTokens):
    """Reads a folder of ``.mds`` files that are not compressed.

    Attributes:
        path: the folder with ``index.json``.
        held_out: another such folder, whose text is held out.
        held_out_tokens: or so many tokens at the end of ``path``.
        vocabulary: number of token ids; 0 takes the tokenizer's.
        tokenizer: the ``tokenizer.json`` that made the ids, for bits per byte and generating text.
        dtype: of the ids, where the column's encoding is ``bytes`` and does not say it.
    """

    dtype: str = "int64"

    def open(self, path: str) -> FileTokens:
        """The samples of all shards, one after another."""
        shards = read_index(path)["shards"]
        names, [size] = shards[0]["column_names"], shards[0]["column_sizes"][:1]
        kind, _, form = shards[0]["column_encodings"][0].partition(":")
        dtype, _, shape = (form if kind == "ndarray" else self.dtype).partition(":")
        if len(names) > 1 or kind not in ("bytes", "ndarray") or not dtype:
            raise DataError(
                f"{path} has {names} of {shards[0]['column_encodings']}, not token ids alone; "
                "write one column as ndarray:int32"
            )
        find = partial(_find, head=0 if size else 4, shaped=kind == "ndarray" and not shape)
        files = [_file(Path(path), shard) for shard in shards]
        return SampleTokens(files, find, dtype, self.vocab_size())


def _find(file: Path, head: int, shaped: bool) -> tuple[Starts, Starts]:
    """First bytes of the ids of each sample of a file, and how many bytes they take.

    They come after ``head`` bytes of a sample, and then after a shape or not.
    """
    content = np.memmap(file, np.uint8, "r")
    count = int(content[:4].view("<u4")[0])
    borders = content[4 : 8 + 4 * count].view("<u4").astype(np.int64)
    places, sizes = borders[:-1] + head, np.diff(borders) - head
    if shaped and count:
        # Samples of one length have one shape, which the first one tells; no other is read.
        asked = places[:1] if np.ptp(sizes) == 0 else places
        skipped = 1 + (content[asked] >> 2).astype(np.int64) * (1 << (content[asked] & 3))
        places, sizes = places + skipped, sizes - skipped
    return places, sizes


class SampleTokens(FileTokens):
    """The ids of samples as one row; they are verified each time, which costs less than a copy."""

    def __init__(
        self, files: list[Path], find: partial[tuple[Starts, Starts]], dtype: str, vocab_size: int
    ) -> None:
        self._find = find
        found = (FileStretch(file, 0, int(find(file)[1].sum())) for file in files)
        super().__init__(found, dtype, vocab_size)
        self._tables: dict[int, tuple[Starts, Starts]] = {}

    def rows(self, starts: Sequence[int], length: int) -> Ids:
        """One copy for all windows, of pieces of as many samples as they lie in."""
        ids = super().rows(starts, length)
        if ids.size:
            self._check_ids(self._stretches[0].path.parent, 0, ids)
        return ids

    def _file(self, number: int) -> FileStretch:
        path = self._stretches[number].path
        return FileStretch(path, 0, path.stat().st_size)

    def _map(self, number: int) -> Shard:
        shard = super()._map(number)
        places, sizes = self._find(shard.path)
        self._tables = {n: table for n, table in self._tables.items() if n in self._open}
        self._tables[number] = places, np.concatenate([[0], np.cumsum(sizes)])
        return shard

    def _add(self, pieces: list[memoryview], number: int, first: int, size: int) -> None:
        while size:
            shard = self._open.get(number) or self._map(number)
            places, borders = self._tables[number]
            sample = int(np.searchsorted(borders, first, "right")) - 1
            place = int(places[sample]) + first - int(borders[sample])
            taken = min(size, int(borders[sample + 1]) - first)
            pieces.append(shard.content[place : place + taken])
            first, size = first + taken, size - taken
            if first == borders[-1]:
                number, first = number + 1, 0


def _file(folder: Path, shard: dict[str, Any]) -> Path:
    file = folder / str(shard["raw_data"]["basename"])
    if shard["zip_data"] and not file.exists():
        raise DataError(
            f"{folder / shard['zip_data']['basename']} is compressed; unpack it to {file}"
        )
    if file.stat().st_size != shard["raw_data"]["bytes"]:
        raise DataError(f"{file} has not the {shard['raw_data']['bytes']} bytes of the index")
    return file
