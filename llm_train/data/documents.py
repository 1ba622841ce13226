"""Where the documents of a split lie among its tokens, for attention, packing and audits."""

from __future__ import annotations

from abc import ABC, abstractmethod
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
