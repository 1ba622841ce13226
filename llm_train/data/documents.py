"""Where the documents of a split lie among its tokens, for attention, packing and audits.

Two files a split: ``SPLIT.documents`` has two integers for each document, the position of its first
token and the end of its key in ``SPLIT.keys``, where keys follow one another.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Place(NamedTuple):
    """Where a document lies in a split.

    Attributes:
        key: of the document in its corpus.
        start: its first token in the split.
        stop: one more than its last token, which is its boundary token where it has one.
        number: of the document in the split.
    """

    key: str
    start: int
    stop: int
    number: int


class Documents(ABC):
    """Where the documents of one split lie. Cheap to open.

    Args:
        count: documents in the split.
        tokens: in it.
    """

    def __init__(self, count: int, tokens: int) -> None:
        self._count, self._tokens = count, tokens

    def __len__(self) -> int:
        return self._count

    @abstractmethod
    def starts(self) -> npt.NDArray[np.int64]:
        """(D,) position of the first token of each document in the split, ascending."""

    @abstractmethod
    def _key(self, number: int) -> str:
        """Of a document in its corpus."""

    def find(self, token: int) -> Place:
        """The document that the token at a position belongs to, by bisection."""
        starts = self.starts()
        number = int(np.searchsorted(starts, token, side="right")) - 1
        if not 0 <= token < self._tokens or number < 0:
            raise IndexError(f"token {token} of {self._tokens}")
        stop = self._tokens if number + 1 == self._count else int(starts[number + 1])
        return Place(self._key(number), int(starts[number]), stop, number)


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
