"""What a format is: bytes to documents, and where a large file may be cut."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from llm_train.data.base import Document, Skipped

LONGEST_BYTES = 64 << 20  # of a line or a field; a book has one or two million


class Span(NamedTuple):
    """A stretch of one file, in bytes or row groups; ``stop`` is the first that is not in it."""

    start: int
    stop: int


class Format(ABC):
    """Turns the bytes of a file into documents. Subclasses are frozen dataclasses.

    Attributes:
        is_text: the bytes are text in some encoding.
    """

    is_text = True

    @abstractmethod
    def read(
        self, stream: io.BufferedReader, key: str, span: Span | None
    ) -> Iterator[Document | Skipped]:
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
