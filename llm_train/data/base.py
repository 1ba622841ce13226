"""What the parts of the data family offer each other.

Two halves that meet only on disk. Preparing: a ``Recipe`` turns a ``Corpus`` into token ids with a
``Tokenizer`` and a ``Split``. Training: a ``TokenSource`` (token_source.py) hands out windows of
token ids by index. Training never touches text, and the number of windows taken is all there is to
remember.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tokenizers

from llm_train.context import Part

TRAIN = "train"
HELD_OUT = "held_out"  # the part that the split holds out; other held-out sets have other names
END_OF_TEXT = "<|endoftext|>"
NO_TOKEN = -1

Ids = npt.NDArray[np.integer[Any]]  # of any width


class Document(NamedTuple):
    """One text and its place: FILE, FILE#NUMBER, FILE:LINE, ARCHIVE!MEMBER or SPLIT:ROW."""

    key: str
    text: str


class Skipped(NamedTuple):
    """Something that could have been a document and is not.

    Attributes:
        key: its place.
        reason: a phrase that is counted, without parts that vary ("no field 'text'").
        detail: what was found instead ("it has content, id"), shown with the first example.
        intended: True where the configuration asked for it, as with filters.
    """

    key: str
    reason: str
    detail: str = ""
    intended: bool = False


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A part of a corpus that one process reads alone. Subclasses say which files, and are pickled.

    Attributes:
        name: unique within the corpus, and the same at every call.
        size: bytes on disk; 0 where unknown.
        stamp: changes when the content does, and is cheap to find out.
    """

    name: str
    size: int
    stamp: str


class Piece(NamedTuple):
    """A document, or the part of it that went to one side of the split.

    Attributes:
        split: the side.
        key: of the document.
        text: never empty.
        ends: True when the document ends here, so that a boundary token follows.
        digest: the hash of the document's text; b"" where this is a part of it.
    """

    split: str
    key: str
    text: str
    ends: bool
    digest: bytes = b""


class Corpus(Part, ABC):
    """Configuration of a body of text. Subclasses are frozen, keyword-only dataclasses.

    One bad document is ``Skipped``; a file that cannot be read at all raises DataError.
    """

    @abstractmethod
    def units(self) -> Sequence[Unit]:
        """All parts in the order of the corpus, of about 64 MiB where it can be cut."""

    @abstractmethod
    def documents(self, unit: Unit) -> Iterator[Document | Skipped]:
        """What one part holds, the same at every call."""

    def read(self) -> Iterator[Document | Skipped]:
        """All documents, in the same order at every call."""
        return chain.from_iterable(map(self.documents, self.units()))

    def provenance(self) -> Mapping[str, str | int]:
        """Cheap facts about the outside world that change when the text does.

        They are recorded with the recipe, and ``prepare`` refuses to call old tokens up to date
        when they differ.
        """
        units = self.units()
        stamps = "\n".join(f"{unit.name} {unit.stamp}" for unit in units)
        return {
            "units": len(units),
            "bytes": sum(unit.size for unit in units),
            "stamps": sha256(stamps.encode("utf-8", "surrogateescape")).hexdigest(),
        }


class Split(Part, ABC):
    """Configuration of what is held out. Subclasses are frozen, keyword-only dataclasses.

    Attributes:
        by_content: the hash of a document's text alone decides, so that copies fall on one side.
    """

    by_content = False

    @property
    @abstractmethod
    def holds_out(self) -> bool:
        """Whether an empty held-out part would be a mistake."""

    def survey(self, units: Sequence[Iterable[Document]]) -> Sequence[int]:
        """One number for each unit, which ``divide`` is given; may read them all."""
        return [0] * len(units)

    @abstractmethod
    def divide(self, documents: Iterable[Piece], before: int) -> Iterator[Piece]:
        """Sends every character of a unit to one side, in order.

        Args:
            documents: of the unit, whole, as pieces of the training side.
            before: the unit's number from ``survey``.
        """


class Texts(NamedTuple):
    """Passes over the corpus for a tokenizer that learns from it.

    Attributes:
        train: starts a pass over the training texts.
        everything: starts a pass over all texts, held out or not.
    """

    train: Callable[[], Iterator[str]]
    everything: Callable[[], Iterator[str]]


class Tokenizer(Part, ABC):
    """Configuration of a tokenizer. Subclasses are frozen, keyword-only dataclasses."""

    @property
    def boundary(self) -> str:
        """The token appended to each document; "" appends none."""
        return END_OF_TEXT

    @abstractmethod
    def build(self, texts: Texts) -> tokenizers.Tokenizer:
        """Trains or loads the tokenizer."""

    def provenance(self) -> Mapping[str, str | int]:
        """Facts outside the configuration and the text that the tokenizer depends on; here none."""
        return {}


class Recipe(Part, ABC):
    """Configuration of how tokens are made. Subclasses are frozen, keyword-only dataclasses.

    Attributes:
        comparable: False where the recipe says nothing about how the tokens were made.
    """

    comparable = True

    @property
    def boundary(self) -> str:
        """The token after each document; "" where there is none."""
        return END_OF_TEXT

    @abstractmethod
    def write(self, directory: Path, progress: bool) -> None:
        """Returns when a directory holds a complete set of token shards, whose manifest is last.

        It holds what an interrupted call left; other processes may be writing there, too.
        """

    def provenance(self) -> Mapping[str, str | int]:
        """Facts outside the configuration that the tokens depend on; here none are known."""
        return {}

    def content(self) -> str:
        """A hash of all text, which is read for it; "" where there is none."""
        return ""
