"""Documents that are changed or left out by rule, whatever corpus they come from."""

import math
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from llm_train.context import Part
from llm_train.data.base import Corpus, Document, Skipped, Unit
from llm_train.data.corpus.rows import Item
from llm_train.errors import ConfigError, check_at_least, check_choices


class Filter(Part, ABC):
    """Configuration of a rule. Subclasses are frozen, keyword-only dataclasses."""

    @abstractmethod
    def __call__(self, document: Document) -> Item:
        """The document, a changed one with its key, or why it is left out; always the same."""


@dataclass(frozen=True, kw_only=True)
class Filtered(Corpus):
    """Another corpus, each document of which goes through filters, one after another.

    Attributes:
        corpus: the other one.
        filters: in this order; one that leaves a document out is the last to see it.
    """

    corpus: Corpus
    filters: list[Filter]

    def parts(self) -> Iterator[Part]:
        """Corpus and filters."""
        yield from (self.corpus, *self.filters)

    def units(self) -> Sequence[Unit]:
        """Of the other corpus."""
        return self.corpus.units()

    def documents(self, unit: Unit) -> Iterator[Item]:
        """What the filters leave, and the reasons for the rest."""
        return map(self._passed, self.corpus.documents(unit))

    def _passed(self, item: Item) -> Item:
        """What the filters make of a document; what one of them leaves out was meant to be."""
        for each in self.filters:
            if isinstance(item, Skipped):
                return item
            item = each(item)
            if isinstance(item, Skipped):
                return item._replace(intended=True)
        return item


@dataclass(frozen=True, kw_only=True)
class Normalize(Filter):
    """One of the Unicode normal forms, so that the same text is the same bytes.

    Attributes:
        form: NFC, NFD, NFKC or NFKD; the K forms lose distinctions, as that of ``x²`` and ``x2``.
    """

    form: Literal["NFC", "NFD", "NFKC", "NFKD"] = "NFC"

    def __post_init__(self) -> None:
        check_choices(self)

    def __call__(self, document: Document) -> Document:
        """The same text in this form."""
        return document._replace(text=unicodedata.normalize(self.form, document.text))


@dataclass(frozen=True, kw_only=True)
class Length(Filter):
    """Leaves out what is too short or too long.

    Attributes:
        least: characters, blanks at both ends not counted; 1 leaves out blank documents.
        most: characters; 0 is any number.
    """

    least: int = 1
    most: int = 0

    def __post_init__(self) -> None:
        check_at_least(self, 0, "least", "most")
        if self.most and self.most < self.least:
            raise ConfigError(
                f"most={self.most} is below least={self.least}; nothing would be left"
            )

    def __call__(self, document: Document) -> Item:
        """The document, if its length is allowed."""
        length = len(document.text.strip())
        if length < self.least:
            return Skipped(document.key, f"shorter than {self.least} characters", str(length))
        if length > (self.most or math.inf):
            return Skipped(document.key, f"longer than {self.most} characters", str(length))
        return document
