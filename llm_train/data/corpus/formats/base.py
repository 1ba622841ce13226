"""What a format is: bytes to documents, and where a large file may be cut."""

import io
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from llm_train.data.corpus.rows import Item, RowText

_TEXT_FIELD = RowText(field="text", where={})
LONGEST_BYTES = 64 << 20  # of a line or a field; a book has one or two million


class Span(NamedTuple):
    """A stretch of one file, in bytes or row groups; ``stop`` is the first that is not in it."""

    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class Format(ABC):
    """Turns the bytes of a file into documents. Each format looks at what concerns it.

    Attributes:
        rows: how a row becomes text.
        separator: between documents of plain text; "" means that a file is one.
        delimiter: between fields of a line; "" is what its header has most often.
    """

    rows: RowText = _TEXT_FIELD
    separator: str = ""
    delimiter: str = ""
    is_text = True

    @abstractmethod
    def read(self, stream: io.BufferedReader, key: str, span: Span | None) -> Iterator[Item]:
        """Documents in order.

        Args:
            stream: UTF-8 without a byte order mark where the format is text.
            key: the beginning of the documents' keys.
            span: one of ``spans``; None is the whole file.

        Raises:
            ValueError: what is wrong with the whole file.
        """

    def spans(self, stream: io.BufferedReader, size: int, target: int) -> Sequence[Span]:
        """Stretches of about ``target`` bytes that can be read alone; empty where it has none."""
        return ()
