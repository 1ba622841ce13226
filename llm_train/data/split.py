"""What is held out, decided by rule, so that preparing again holds out the same text."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import accumulate

from llm_train.data.base import HELD_OUT, Document, Piece, Split
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
