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
    """Where the documents of one split lie. Cheap to open."""

    @abstractmethod
    def __len__(self) -> int:
        """Documents in the split."""

    @abstractmethod
    def starts(self) -> npt.NDArray[np.int64]:
        """(D,) position of the first token of each document in the split, ascending."""

    @abstractmethod
    def find(self, token: int) -> Place:
        """The document that the token at a position belongs to."""


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
        self._count, self._tokens, self._verify = count, tokens, verify
        self._verified = set[Path]()
        self._starts, self._keys = directory / starts_name(split), directory / keys_name(split)

    def __len__(self) -> int:
        return self._count

    def starts(self) -> npt.NDArray[np.int64]:
        """A new array."""
        return self._table()[:, 0].astype(np.int64)

    def find(self, token: int) -> Place:
        """By bisection in the file."""
        table = self._table()
        number = int(np.searchsorted(table[:, 0], token, side="right")) - 1
        if not 0 <= token < self._tokens or number < 0:
            raise IndexError(f"token {token} of {self._tokens}")
        last = number + 1 == self._count
        first_byte = int(table[number - 1, 1]) if number else 0
        self._require(self._keys)
        with open(self._keys, "rb") as file:
            file.seek(first_byte)
            key = file.read(int(table[number, 1]) - first_byte)
        return Place(
            key=key.decode("utf-8", "surrogateescape"),
            start=int(table[number, 0]),
            stop=self._tokens if last else int(table[number + 1, 0]),
            number=number,
        )

    def _table(self) -> npt.NDArray[np.uint64]:
        self._require(self._starts)
        if not self._count:
            return np.zeros((0, 2), np.uint64)
        return np.memmap(self._starts, "<u8", "r", shape=(self._count, 2))

    def _require(self, path: Path) -> None:
        """Reads all of a file once, before its first use."""
        if path not in self._verified:
            self._verify(path.name)
            self._verified.add(path)
