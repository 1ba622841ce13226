"""What is held out, and which copies go, decided by rule before anything is encoded.

Preparing again holds out the same text. A survey of copies reads the corpus once and names what to
leave out. What it keeps in memory is small for each document, but not nothing: 100 bytes for exact
copies, 1 to 2 kB for near ones.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b, sha256
from itertools import accumulate
from typing import Any

from llm_train.context import Part
from llm_train.data.base import HELD_OUT, Document, Piece, Split
from llm_train.errors import check_at_least
from llm_train.runtime.extras import library


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
    """Holds out whole documents, each by a hash of its text.

    Adding, removing or renaming a document moves no other, and copies fall on one side.

    Attributes:
        fraction: expected part of the documents that is held out.
        salt: another salt holds out other documents.
    """

    fraction: float = 0.05
    salt: str = ""
    by_content = True

    def held_out(self, digest: bytes) -> bool:
        """The side of a document by the hash of its text."""
        salted = sha256(self.salt.encode() + digest).digest() if self.salt else digest
        # Eight bytes of a hash are uniform in 0 .. 2**64 - 1.
        return int.from_bytes(salted[:8], "big") < self.fraction * 2.0**64

    def divide(self, documents: Iterable[Piece], before: int) -> Iterator[Piece]:
        """Whole documents, in corpus order."""
        for document in documents:
            held_out = self.held_out(document.digest)
            yield document._replace(split=HELD_OUT) if held_out else document


@dataclass(frozen=True, kw_only=True)
class TailSplit(_Fraction):
    """Holds out the end of the corpus: ``text[int((1 - fraction) * len(text)):]``, in characters.

    The cut may fall inside a document; its first part is then followed by no boundary token. The
    corpus is read twice more than otherwise: to count its characters, and to find copies of what
    is held out.

    Attributes:
        fraction: part of the characters that is held out.
    """

    fraction: float = 0.1

    def survey(self, units: Sequence[Iterable[Document]]) -> Sequence[int]:
        """Characters from the start of each unit to the cut; negative behind it."""
        lengths = [sum(len(document.text) for document in unit) for unit in units]
        cut = int((1.0 - self.fraction) * sum(lengths))
        return [cut - before for before in accumulate(lengths, initial=0)][:-1]

    def divide(self, documents: Iterable[Piece], before: int) -> Iterator[Piece]:
        """Everything before the cut, then everything after it."""
        for whole in documents:
            cut = max(0, before)
            train, held_out = whole.text[:cut], whole.text[cut:]
            before -= len(whole.text)
            if train and held_out:
                yield whole._replace(text=train, ends=False, digest=b"")
                yield whole._replace(split=HELD_OUT, text=held_out, digest=b"")
            else:
                yield whole if train else whole._replace(split=HELD_OUT)


_WORD = re.compile(r"\w+")


class Duplicates(Part, ABC):
    """Configuration of which copies go. Subclasses are frozen, keyword-only dataclasses."""

    @abstractmethod
    def survey(self, documents: Iterator[Document]) -> dict[str, str]:
        """Key to reason for each document to leave out; the first of several copies stays."""


@dataclass(frozen=True, kw_only=True)
class KeepCopies(Duplicates):
    """Leaves nothing out, and reads nothing."""

    def survey(self, documents: Iterator[Document]) -> dict[str, str]:
        """Nothing."""
        return {}


@dataclass(frozen=True, kw_only=True)
class ExactCopies(Duplicates):
    """Leaves out documents whose text was there before, byte for byte."""

    def survey(self, documents: Iterator[Document]) -> dict[str, str]:
        """By hashes of 128 bits: a false one among 1e12 documents has a chance of 1 in 1e15."""
        seen: set[bytes] = set()
        return {document.key: "exact copy" for document in documents if _seen(document, seen)}


@dataclass(frozen=True, kw_only=True)
class NearCopies(Duplicates):
    """Leaves out documents that share most runs of words with an earlier one, by MinHash.

    Needs the package datasketch. It costs about a millisecond a kilobyte.

    Attributes:
        threshold: estimated Jaccard similarity of the two sets of runs from which one goes.
        words: in a run; letters count without their case, punctuation does not count.
        permutations: of the estimate, whose standard error is below ``0.5 / sqrt(permutations)``.
    """

    threshold: float = 0.8
    words: int = 5
    permutations: int = 128

    def __post_init__(self) -> None:
        check_at_least(self, 0, "threshold", below=1, hint=": a share of the runs of words")
        check_at_least(self, 1, "words")
        check_at_least(self, 16, "permutations")

    def survey(self, documents: Iterator[Document]) -> dict[str, str]:
        """Exact copies too, under their own reason."""
        datasketch = library("datasketch", "data")
        index = datasketch.MinHashLSH(threshold=self.threshold, num_perm=self.permutations)
        kept: list[Any] = []
        seen: set[bytes] = set()
        reasons: dict[str, str] = {}
        for document in documents:
            if _seen(document, seen):
                reasons[document.key] = "exact copy"
                continue
            sketch = datasketch.MinHash(num_perm=self.permutations, seed=1)
            sketch.update_batch(self._runs(document.text))
            # The index finds candidates; the estimate decides.
            near = (sketch.jaccard(kept[number]) for number in index.query(sketch))
            if any(similarity >= self.threshold for similarity in near):
                reasons[document.key] = "near copy"
            else:
                index.insert(len(kept), sketch)
                kept.append(sketch)
        return reasons

    def _runs(self, text: str) -> list[bytes]:
        found = _WORD.findall(text.lower())
        starts = range(max(1, len(found) - self.words + 1))
        return list({" ".join(found[at : at + self.words]).encode() for at in starts})


def _seen(document: Document, seen: set[bytes]) -> bool:
    digest = blake2b(document.text.encode(), digest_size=16).digest()
    known = digest in seen
    seen.add(digest)
    return known
