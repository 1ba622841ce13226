"""What is held out, decided by rule, so that preparing again holds out the same text."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from llm_train.data.base import Document, Piece, Split
from llm_train.errors import check_at_least


@dataclass(frozen=True, kw_only=True)
class _Fraction(Split):
    fraction: float

    def __post_init__(self) -> None:
        check_at_least(self, 0, "fraction", below=1, hint=": the part of the text held out")

    @property
    def holds_out(self) -> bool:
        """Whether ``fraction`` is above 0."""
        return self.fraction > 0.0


@dataclass(frozen=True, kw_only=True)
class HashSplit(_Fraction):
    """Holds out whole documents, each by a hash of its own key: adding one moves no other.

    Attributes:
        fraction: expected part of the documents that is held out.
        salt: another salt holds out other documents.
    """

    fraction: float = 0.05
    salt: str = ""

    def held_out(self, key: str) -> bool:
        """The side of the document called ``key``."""
        digest = hashlib.sha256(f"{self.salt}/{key}".encode("utf-8", "surrogateescape")).digest()
        # Eight bytes of a hash are uniform in 0 .. 2**64 - 1. Names of files need not be UTF-8.
        return int.from_bytes(digest[:8], "big") < self.fraction * 2.0**64

    def divide(self, documents: Callable[[], Iterator[Document]]) -> Iterator[Piece]:
        """Whole documents, in corpus order."""
        for document in documents():
            side = "held_out" if self.held_out(document.key) else "train"
            yield Piece(side, document.key, document.text, ends=True)


@dataclass(frozen=True, kw_only=True)
class TailSplit(_Fraction):
    """Holds out the end of the corpus: ``text[int((1 - fraction) * len(text)):]``, in characters.

    The cut may fall inside a document; its first part is then followed by no boundary token. The
    corpus is read once more than otherwise, to count its characters.

    Attributes:
        fraction: part of the characters that is held out.
    """

    fraction: float = 0.1

    def divide(self, documents: Callable[[], Iterator[Document]]) -> Iterator[Piece]:
        """Everything before the cut, then everything after it."""
        cut = int((1.0 - self.fraction) * sum(len(document.text) for document in documents()))
        for document in documents():
            before, after = document.text[: max(0, cut)], document.text[max(0, cut) :]
            cut -= len(document.text)
            if before:
                yield Piece("train", document.key, before, ends=not after)
            if after:
                yield Piece("held_out", document.key, after, ends=True)
