"""One pass over one unit of a corpus: the pieces of text, and counts of what was left out."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256

from llm_train.data.base import TRAIN, Corpus, Document, Piece, Skipped, Split, Unit
from llm_train.errors import DataError


@dataclass(kw_only=True)
class Tally:
    """Counts of documents.

    Attributes:
        kept: documents that were given out.
        unexpected: documents that were left out although nobody asked for it.
        skipped: documents that were left out, by reason.
        examples: the first of each reason: its place, and what was found.
    """

    kept: int = 0
    unexpected: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    @classmethod
    def total(cls, tallies: Iterable["Tally"]) -> "Tally":
        """All of them together, in the order of the corpus."""
        whole = cls()
        for tally in tallies:
            whole.kept += tally.kept
            whole.unexpected += tally.unexpected
            for reason, count in tally.skipped.items():
                whole.skipped[reason] = whole.skipped.get(reason, 0) + count
            whole.examples = {**tally.examples, **whole.examples}
        return whole

    def skip(self, item: Skipped) -> None:
        """Counts something that is left out."""
        self.skipped[item.reason] = self.skipped.get(item.reason, 0) + 1
        self.unexpected += not (item.intended or item.reason == "empty")
        self.examples.setdefault(item.reason, ": ".join(filter(None, (item.key, item.detail))))

    def require_readable(self, most: float, name: str = "the corpus") -> None:
        """Refuses a corpus of which too much cannot be read.

        Args:
            most: part of the documents that may be left out although nobody asked for it.
            name: of the corpus.

        Raises:
            DataError: with each reason, its count, and one example.
        """
        lines = skipped_lines(self.skipped, self.examples).items()
        reasons = "; ".join(f"{reason}: {line}" for reason, line in lines)
        if not self.kept:
            raise DataError(
                f"{name} has no text ({reasons or 'it has no documents'}); check its paths, "
                "its format and the field that holds the text"
            )
        total = self.kept + self.unexpected
        if self.unexpected > most * total:
            raise DataError(
                f"{self.unexpected} of {total} documents cannot be read ({reasons}), which is more "
                f"than max_skipped={most}; correct the corpus, or accept it with data.recipe."
                f"init_args.max_skipped={min(1.0, 1.1 * self.unexpected / total):.2g}"
            )


def skipped_lines(skipped: Mapping[str, int], examples: Mapping[str, str]) -> dict[str, str]:
    """Each reason, with how often and the first place."""
    return {
        reason: f"{count:,}, the first {examples[reason]}" if reason in examples else f"{count:,}"
        for reason, count in sorted(skipped.items())
    }


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
        whole = self._whole()
        if name := self.task.held_out:
            yield from (piece._replace(split=name) for piece in whole)
            return
        for piece in self.rules.split.divide(whole, self.task.before):
            if piece.split == TRAIN and piece.digest in self.rules.held_out:
                self.tally.skip(Skipped(piece.key, COPY, intended=True))
            else:
                yield piece

    def _whole(self) -> Iterator[Piece]:
        for key, text in self.documents():
            hasher = sha256()
            for start in range(0, len(text), _SLICE):  # a copy in bytes would be as long
                hasher.update(text[start : start + _SLICE].encode())
            digest = hasher.digest()[:16]
            self.content.update(digest)
            yield Piece(TRAIN, key, text, ends=True, digest=digest)
