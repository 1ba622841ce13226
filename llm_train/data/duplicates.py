"""Documents that say what another one says, found before any is encoded.

A survey reads the corpus once and names what to leave out. What it keeps in memory is small for
each document, but not nothing: 100 bytes for exact copies, 1 to 2 kB for near ones.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from llm_train.context import Part
from llm_train.data.base import Document
from llm_train.errors import check_at_least
from llm_train.runtime.extras import library

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
