"""One pass over one unit of a corpus: the pieces of text, and what was left out and why."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256

from llm_train.data.base import TRAIN, Corpus, Document, Hashed, Piece, Skipped, Split, Unit
from llm_train.data.tally import Tally

COPY = "copy of held-out text"
_SLICE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """One unit, and where its text goes.

    Attributes:
        number: of the unit in the whole preparation.
        corpus: that knows how to read it.
        unit: of the corpus.
        held_out: the held-out set that it belongs to; "" where the split decides.
        before: what ``Split.survey`` found.
    """

    number: int
    corpus: Corpus
    unit: Unit
    held_out: str = ""
    before: int = 0


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What decides on a document besides its unit.

    Attributes:
        split: of what belongs to no held-out set of its own.
        dropped: reasons by key of documents to leave out, as duplicates are.
        held_out: hashes of texts that must not be trained on.
    """

    split: Split
    dropped: Mapping[str, str] = field(default_factory=dict)
    held_out: Collection[bytes] = frozenset()


@dataclass(kw_only=True)
class Reading:
    """A pass, which counts as it goes.

    Attributes:
        task: what is read.
        rules: what decides.
        tally: what became of the documents so far.
        content: hash of the texts so far.
    """

    task: Assignment
    rules: Rules
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        self.content = sha256()

    def documents(self) -> Iterator[Document]:
        """What the corpus gives and no rule leaves out; held-out sets keep what they have."""
        for item in self.task.corpus.documents(self.task.unit):
            if isinstance(item, Skipped):
                self.tally.skip(item)
            elif item.key in self.rules.dropped and not self.task.held_out:
                self.tally.skip(Skipped(item.key, self.rules.dropped[item.key], intended=True))
            else:
                self.tally.kept += 1
                yield item

    def pieces(self) -> Iterator[Piece]:
        """The documents divided, without copies of held-out text on the training side."""
        if name := self.task.held_out:
            for document, digest in self._hashed():
                yield Piece(name, document.key, document.text, ends=True, digest=digest)
            return
        for piece in self.rules.split.divide(self._hashed(), self.task.before):
            if piece.split == TRAIN and piece.digest in self.rules.held_out:
                self.tally.skip(Skipped(piece.key, COPY, intended=True))
            else:
                yield piece

    def _hashed(self) -> Iterator[Hashed]:
        for document in self.documents():
            text = document.text
            hasher = sha256()
            for start in range(0, len(text), _SLICE):  # a copy in bytes would be as long
                hasher.update(text[start : start + _SLICE].encode())
            digest = hasher.digest()[:16]
            self.content.update(digest)
            yield Hashed(document, digest)


def passed(
    item: Document | Skipped, filters: Iterable[Callable[[Document], Document | Skipped]]
) -> Document | Skipped:
    """What filters make of a document; what one of them leaves out was meant to be."""
    for each in filters:
        if isinstance(item, Skipped):
            return item
        item = each(item)
        if isinstance(item, Skipped):
            return item._replace(intended=True)
    return item
