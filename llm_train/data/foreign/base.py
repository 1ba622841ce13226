"""What corpora of other programs have in common: held-out text, vocabulary, fingerprint.

Their files hold ids and hardly anything about them. Vocabulary and tokenizer are therefore
settings; ids are compared with the vocabulary when they are first read, as those of our own shards
are, but there are no checksums. Nobody can hash terabytes at each start, so the fingerprint, on
which the order depends, is of the number of tokens and of ids at 64 places.
"""

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import tokenizers

from llm_train.data.base import END_OF_TEXT, HELD_OUT, NO_TOKEN, TRAIN, Ids
from llm_train.data.reader import MappedTokens
from llm_train.data.token_source import Documents, TokenSource, Windows
from llm_train.data.tokenizer.tokenizer_file import (
    byte_lengths,
    load_tokenizer,
    tokenizer_file,
    vocabulary_size,
)
from llm_train.data.windows import HeldOutWindows, Tokens, TrainWindows
from llm_train.errors import ConfigError, DataError, check_at_least

_SAMPLES = 64
_SAMPLE_TOKENS = 1024

Starts = npt.NDArray[np.int64]
T = TypeVar("T")


class FileStretch(NamedTuple):
    """Bytes ``first .. first + size`` of a file, which are token ids and nothing else."""

    path: Path
    first: int
    size: int


class FileTokens(MappedTokens):
    """Stretches of other programs' files as one row of token ids."""

    remedy = "restore it from a copy, or write the corpus again"

    def __init__(self, stretches: Iterable[FileStretch], dtype: str, vocab_size: int) -> None:
        self._stretches = [stretch for stretch in stretches if stretch.size]
        width = np.dtype(dtype).itemsize
        for path, _, size in self._stretches:
            if size % width:
                raise DataError(f"{path} ends within an id of {width} bytes; {self.remedy}")
        super().__init__((stretch.size for stretch in self._stretches), dtype, vocab_size)

    def _file(self, number: int) -> FileStretch:
        return self._stretches[number]


class Excerpt(Tokens):
    """Tokens ``start .. stop`` of a row."""

    def __init__(self, row: Tokens, start: int, stop: int) -> None:
        self._row, self._start, self._stop = row, start, stop

    def __len__(self) -> int:
        return self._stop - self._start

    def rows(self, starts: Sequence[int], length: int) -> Ids:
        """From the row, all at once."""
        return self._row.rows([self._start + start for start in starts], length)


class FileDocuments(Documents):
    """Documents that are known by where they start; a key is the corpus's path and a number."""

    def __init__(self, starts: Starts, tokens: int, path: str, first: int) -> None:
        super().__init__(starts.size, tokens)
        self._starts, self._path, self._first = starts, path, first

    def starts(self) -> Starts:
        """As the index of the corpus says."""
        return self._starts

    def _key(self, number: int) -> str:
        return f"{self._path}#{self._first + number}"


@dataclass(frozen=True, kw_only=True)
class ForeignTokens(TokenSource):
    """Configuration of a corpus that another program has tokenised; one subclass a format."""

    path: str
    held_out: str = ""
    held_out_tokens: int = 0
    vocabulary: int = 0
    tokenizer: str = ""

    unmasked = True

    def __post_init__(self) -> None:
        check_at_least(self, 0, "held_out_tokens", "vocabulary", prefix="data.source.")
        if not self.path:
            raise ConfigError("path='' names no corpus; set data.source.path")
        if self.held_out and self.held_out_tokens:
            raise ConfigError(
                f"data.source.held_out={self.held_out} has text of its own, so that "
                f"held_out_tokens={self.held_out_tokens} would have no effect; leave one out"
            )
        if bool(self.vocabulary) == bool(self.tokenizer):
            raise ConfigError(
                f"data.source.vocabulary={self.vocabulary} and tokenizer={self.tokenizer!r}: the "
                "corpus does not say how many ids there are; set exactly one of them, tokenizer to "
                "the tokenizer.json that made the ids, which also gives bits per byte"
            )

    @abstractmethod
    def open(self, path: str) -> FileTokens:
        """The ids at a path as one row.

        Raises:
            DataError: there is no such corpus.
        """

    def starts(self, path: str) -> Starts | None:
        """Where the documents at a path start, ascending; None where its format does not say."""
        return None

    def check(self) -> list[str]:
        """Reports what is not there, or not of this format."""
        try:
            self.fingerprint()
        except DataError as error:
            return [f"data.source.path={self.path}: {error}"]
        return []

    def fingerprint(self) -> str:
        """Of the number of tokens on both sides, and of ids at places all over them."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        for name in (TRAIN, *self.held_out_sets()):
            row = self._row(name)
            length = min(_SAMPLE_TOKENS, len(row))
            starts = np.linspace(0, len(row) - length, _SAMPLES, dtype=np.int64).tolist()
            digest.update(f"{len(row)} ".encode())
            digest.update(row.rows(starts, length).astype("<i4").tobytes() if length else b"")
        return digest.hexdigest()

    @cached_property
    def _rows(self) -> dict[str, FileTokens]:
        return {path: _understand(self.open, path) for path in (self.path, self.held_out) if path}

    def _bounds(self, split: str) -> tuple[str, int, int]:
        """The path that a side of the corpus lies at, its first token there and its end."""
        path = self.held_out if split == HELD_OUT and self.held_out else self.path
        length = len(self._rows[path])
        if self.held_out_tokens >= length:
            raise DataError(
                f"{path} has {length} tokens, too few for held_out_tokens={self.held_out_tokens}; "
                "hold out fewer"
            )
        border = length - self.held_out_tokens
        return (
            (path, 0, border) if path == self.held_out or split == TRAIN else (path, border, length)
        )

    def _row(self, split: str) -> Tokens:
        path, start, stop = self._bounds(split)
        row = self._rows[path]
        return row if stop - start == len(row) else Excerpt(row, start, stop)

    def vocab_size(self) -> int:
        """As configured, or as the tokenizer has it."""
        return self.vocabulary or vocabulary_size(self._opened)

    @cached_property
    def _opened(self) -> tokenizers.Tokenizer:
        return load_tokenizer(self.tokenizer)

    def train_windows(self, sequence: int, seed: int) -> Windows:
        """Windows of all tokens but the held-out ones."""
        return TrainWindows(self._row(TRAIN), sequence, seed, self.fingerprint())

    def held_out_sets(self) -> tuple[str, ...]:
        """One set, or none if the settings name none."""
        return (HELD_OUT,) if self.held_out or self.held_out_tokens else ()

    def held_out_windows(self, sequence: int, name: str = HELD_OUT) -> Windows:
        """Windows of the other path, or of the end of the corpus."""
        return HeldOutWindows(self._row(name), sequence)

    def documents(self, split: str = TRAIN) -> Documents | None:
        """From the index of the corpus, where the format has one."""
        path, start, stop = self._bounds(split)
        if (starts := _understand(self.starts, path)) is None:
            return None
        first = max(0, int(np.searchsorted(starts, start, "right")) - 1)
        inside = starts[first : np.searchsorted(starts, stop)]
        return FileDocuments(np.maximum(inside - start, 0), stop - start, path, first)

    def end_of_text(self) -> int:
        """The tokenizer's id of the usual boundary token."""
        found = self._opened.token_to_id(END_OF_TEXT) if self.tokenizer else None
        return NO_TOKEN if found is None else int(found)

    def tokenizer_text(self) -> str:
        """The configured tokenizer."""
        return tokenizer_file(self.tokenizer).read_text("utf-8") if self.tokenizer else ""

    def token_bytes(self) -> Ids | None:
        """From the configured tokenizer."""
        if not self.tokenizer:
            return None
        boundary = END_OF_TEXT if self.end_of_text() != NO_TOKEN else ""
        return byte_lengths(self._opened, boundary)

    def description(self) -> dict[str, str | int | float | None]:
        """Counts."""
        counts = {name: len(self._row(name)) for name in (TRAIN, *self.held_out_sets())}
        return {
            "path": self.path,
            **{f"{name}_tokens": count for name, count in counts.items()},
            "vocab_size": self.vocab_size(),
            "tokenizer": self.tokenizer,
        }


def _understand(read: Callable[[str], T], path: str) -> T:
    """What a format's own code finds at a path, where anything may lie."""
    try:
        return read(path)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(
            f"{path} is damaged or not of this format ({error!r}); correct class_path or path"
        ) from None


def files_at(path: str, pattern: str) -> list[Path]:
    """The file at ``path``, or those in the folder, or of the glob, in the order of their names.

    Raises:
        DataError: there are none.
    """
    here = Path(path)
    if here.is_file():
        return [here]
    glob = here.rglob(pattern) if here.is_dir() else here.parent.glob(here.name)
    if not (found := sorted(file for file in glob if file.is_file())):
        raise DataError(f"no file {pattern} at {path}; correct the path")
    return found
