"""What the parts of the data family offer each other.

Two halves that meet only on disk. Preparing: a ``Recipe`` turns a ``Corpus`` into token ids with a
``Tokenizer`` and a ``Split``. Training: a ``TokenSource`` hands out windows of token ids by index.
Training never touches text, and the number of windows taken is all there is to remember.

Shapes: N windows, S sequence. Windows are (N, S + 1): inputs are ``[:, :-1]``, targets ``[:, 1:]``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tokenizers

from llm_train.context import Context, Part
from llm_train.data.documents import Documents
from llm_train.errors import ConfigError

TRAIN = "train"
HELD_OUT = "held_out"  # the part that the split holds out; other held-out sets have other names
SPLITS = (TRAIN, HELD_OUT)
END_OF_TEXT = "<|endoftext|>"
NO_TOKEN = -1

Ids = npt.NDArray[np.integer[Any]]  # of any width


class Document(NamedTuple):
    """One text and its place: FILE, FILE#NUMBER, FILE:LINE, ARCHIVE!MEMBER or SPLIT:ROW."""

    key: str
    text: str


class Hashed(NamedTuple):
    """A document and the hash of its text."""

    document: Document
    digest: bytes


class Skipped(NamedTuple):
    """Something that could have been a document and is not.

    Attributes:
        key: its place.
        reason: a phrase that is counted, without parts that vary ("no field 'text'").
        detail: what was found instead ("it has content, id"), shown with the first example.
        intended: True where the configuration asked for it, as with filters.
    """

    key: str
    reason: str
    detail: str = ""
    intended: bool = False


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A part of a corpus that one process reads alone. Subclasses say which files, and are pickled.

    Attributes:
        name: unique within the corpus, and the same at every call.
        size: bytes on disk; 0 where unknown.
        stamp: changes when the content does, and is cheap to find out.
    """

    name: str
    size: int
    stamp: str


class Piece(NamedTuple):
    """A document, or the part of it that went to one side of the split.

    Attributes:
        split: the side.
        key: of the document.
        text: never empty.
        ends: True when the document ends here, so that a boundary token follows.
        digest: the hash of the document's text; b"" where this is a part of it.
    """

    split: str
    key: str
    text: str
    ends: bool
    digest: bytes = b""


class Corpus(Part, ABC):
    """Configuration of a body of text. Subclasses are frozen, keyword-only dataclasses.

    One bad document is ``Skipped``; a file that cannot be read at all raises DataError.
    """

    @abstractmethod
    def units(self) -> Sequence[Unit]:
        """All parts in the order of the corpus, of about 64 MiB where it can be cut."""

    @abstractmethod
    def documents(self, unit: Unit) -> Iterator[Document | Skipped]:
        """What one part holds, the same at every call."""

    def read(self) -> Iterator[Document | Skipped]:
        """All documents, in the same order at every call."""
        return chain.from_iterable(map(self.documents, self.units()))

    def preview(self, count: int = 100) -> list[Document | Skipped]:
        """The first items, which are cheap to look at before anything expensive begins."""
        return list(islice(self.read(), count))

    def provenance(self) -> Mapping[str, str | int]:
        """Cheap facts about the outside world that change when the text does.

        They are recorded with the recipe, and ``prepare`` refuses to call old tokens up to date
        when they differ.
        """
        units = self.units()
        stamps = "\n".join(f"{unit.name} {unit.stamp}" for unit in units)
        return {
            "units": len(units),
            "bytes": sum(unit.size for unit in units),
            "stamps": sha256(stamps.encode("utf-8", "surrogateescape")).hexdigest(),
        }


class Split(Part, ABC):
    """Configuration of what is held out. Subclasses are frozen, keyword-only dataclasses.

    Attributes:
        by_content: the hash of a document's text alone decides, so that copies fall on one side.
    """

    by_content = False

    @property
    @abstractmethod
    def holds_out(self) -> bool:
        """Whether an empty held-out part would be a mistake."""

    def survey(self, units: Sequence[Iterable[Document]]) -> Sequence[int]:
        """One number for each unit, which ``divide`` is given; may read them all."""
        return [0] * len(units)

    @abstractmethod
    def divide(self, documents: Iterable[Hashed], before: int) -> Iterator[Piece]:
        """Sends every character of a unit to one side, in order.

        Args:
            documents: of the unit.
            before: the unit's number from ``survey``.
        """


class Texts(NamedTuple):
    """Passes over the corpus for a tokenizer that learns from it.

    Attributes:
        train: starts a pass over the training texts.
        everything: starts a pass over all texts, held out or not.
    """

    train: Callable[[], Iterator[str]]
    everything: Callable[[], Iterator[str]]


class Tokenizer(Part, ABC):
    """Configuration of a tokenizer. Subclasses are frozen, keyword-only dataclasses."""

    @property
    def boundary(self) -> str:
        """The token appended to each document; "" appends none."""
        return END_OF_TEXT

    @abstractmethod
    def build(self, texts: Texts) -> tokenizers.Tokenizer:
        """Trains or loads the tokenizer."""

    def provenance(self) -> Mapping[str, str | int]:
        """Facts outside the configuration and the text that the tokenizer depends on; here none."""
        return {}


class Recipe(Part, ABC):
    """Configuration of how tokens are made. Subclasses are frozen, keyword-only dataclasses.

    Attributes:
        comparable: False where the recipe says nothing about how the tokens were made.
    """

    comparable = True

    @property
    def boundary(self) -> str:
        """The token after each document; "" where there is none."""
        return END_OF_TEXT

    @abstractmethod
    def write(self, directory: Path, progress: bool) -> None:
        """Returns when a directory holds a complete set of token shards, whose manifest is last.

        It holds what an interrupted call left; other processes may be writing there, too.
        """

    def snapshot(self, source: Path, directory: Path) -> None:
        """As ``write``, of what a call that is still writing into ``source`` has finished."""
        raise ConfigError(f"data.recipe={type(self).__name__} has no parts that end one by one")

    def provenance(self) -> Mapping[str, str | int]:
        """Facts outside the configuration that the tokens depend on; here none are known."""
        return {}

    def content(self) -> str:
        """A hash of all text, which is read for it; "" where there is none."""
        return ""


class TokenSpan(NamedTuple):
    """Consecutive tokens of the training split.

    Attributes:
        source: the name of the source in a mixture; "" where there is one source.
        start: the first of them.
        stop: one more than the last.
    """

    source: str
    start: int
    stop: int


class Windows(ABC):
    """Windows of S + 1 token ids by index. Cheap to pickle: DataLoader workers get copies."""

    @abstractmethod
    def __len__(self) -> int:
        """Windows in one pass over the tokens."""

    @abstractmethod
    def batch(self, indices: npt.ArrayLike) -> Ids:
        """Windows number ``indices`` (N,) as (N, S + 1), any integer type that torch has.

        -1 marks a place without a token; a source without such places may use uint16.
        """

    def spans(self, index: int) -> list[TokenSpan]:
        """Where the tokens of a training window come from, in order; empty where unknown."""
        return []


class TokenSource(Part, ABC):
    """Configuration of what training reads. Subclasses are frozen, keyword-only dataclasses.

    Attributes:
        unmasked: True where no training window holds -1, so that every target counts in the loss.
    """

    unmasked = False

    def check(self) -> list[str]:
        """Why training could not read this source, one line each, without reading the tokens."""
        return []

    @property
    def folder(self) -> Path | None:
        """Where ``llm-train prepare`` writes for this source; None: it reads nothing prepared."""
        return None

    @property
    def prepared(self) -> bool:
        """Whether the tokens are there, damaged or not, as opposed to not made yet."""
        return True

    def tokenizer_text(self) -> str:
        """The tokenizer that made the ids, as JSON, to keep with checkpoints; "" where unknown."""
        return ""

    def problems(self, context: Context) -> Iterator[str]:
        """Tokens that are damaged, too few, or of a larger vocabulary than the network's."""
        if not self.prepared and not context.running:
            return
        if missing := self.check():
            yield from missing
            return
        if context.documents == "confined" and self.end_of_text() == NO_TOKEN:
            yield (
                "model.documents=confined needs the token that ends a document, and data.source "
                "knows none; prepare with a tokenizer that has one, or write joined"
            )
        if self.vocab_size() > context.token_ids:
            yield too_many_ids("data.source", self.vocab_size(), context.token_ids)
        facts, sequence = self.description(), context.batch.sequence
        wanted = {"train_tokens": sequence + 1, "held_out_tokens": 2 * bool(self.held_out_sets())}
        for key, needed in wanted.items():
            count = facts.get(key)
            if isinstance(count, int) and count < needed:
                yield (
                    f"data.source has {count} {key.replace('_', ' ')} and at least {needed} are "
                    f"needed with batch.sequence={sequence}; use more text"
                )

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of the tokens, whatever their layout on disk; the data order depends on it."""

    def past(self, samples: int, sequence: int) -> str:
        """A hash of what the first ``samples`` of a run are; a run goes on only after the same."""
        return self.fingerprint()

    def identity(self) -> dict[str, str]:
        """What the tokens were made from, to say what changed where the fingerprint did."""
        return {}

    def remedy(self, samples: int, sequence: int) -> str:
        """What to do after ``samples`` of a run where the fingerprint changed."""
        return "point data.source at the old tokens, or start a new run"

    def realised(self, samples: int, sequence: int) -> dict[str, float]:
        """Metrics of where the first ``samples`` of a run came from; there may be none."""
        return {}

    @abstractmethod
    def vocab_size(self) -> int:
        """Number of token ids; ids are 0 .. vocab_size - 1."""

    @abstractmethod
    def train_windows(self, sequence: int, seed: int) -> Windows:
        """Endless windows: index i is the i-th sample of the run, in epoch ``i // len``.

        Raises:
            DataError: fewer than ``sequence + 1`` training tokens.
        """

    @abstractmethod
    def held_out_windows(self, sequence: int, name: str = HELD_OUT) -> Windows:
        """Each token of a held-out set after the first is a target of exactly one window."""

    def held_out_sets(self) -> tuple[str, ...]:
        """Names of the held-out sets; there may be none."""
        return (HELD_OUT,)

    def end_of_text(self) -> int:
        """The id that follows each document; ``NO_TOKEN`` where there is none, or it is unknown."""
        return NO_TOKEN

    def documents(self, split: str = TRAIN) -> Documents | None:
        """Where the documents of a split lie; None where it is unknown."""
        return None

    def called(self, name: str) -> TokenSource:
        """The source that a ``TokenSpan`` names; itself where it is not a mixture."""
        return self

    def token_bytes(self) -> Ids | None:
        """(vocab_size,) bytes of text that each id decodes to, 0 for special tokens; or unknown."""
        return None

    def window_facts(self, sequence: int) -> dict[str, int | float]:
        """What follows from cutting the tokens into windows, to print; here nothing."""
        return {}

    @abstractmethod
    def description(self) -> dict[str, str | int | float | None]:
        """Plain facts to print at the start of a run."""


def too_many_ids(key: str, wanted: int, known: int) -> str:
    """The problem of a network that knows fewer token ids than there are."""
    return (
        f"{key} has {wanted} token ids but model.network knows {known}; "
        f"set model.network.init_args.vocab_size to {wanted}"
    )
