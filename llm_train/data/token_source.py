"""What training reads: windows of token ids by index, and where they come from.

Shapes: N windows, S sequence. Windows are (N, S + 1): inputs are ``[:, :-1]``, targets ``[:, 1:]``.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from llm_train.context import Context, Part
from llm_train.data.base import HELD_OUT, NO_TOKEN, TRAIN, Ids


class TokenSpan(NamedTuple):
    """Consecutive tokens of the training split.

    Attributes:
        source: the name of the source in a mixture; "" where there is one source.
        start: the first of them.
        stop: one more than the last.
        added: tokens that were put among them, and come from nowhere.
    """

    source: str
    start: int
    stop: int
    added: int = 0


class Windows(ABC):
    """Windows of S + 1 token ids by index. Cheap to pickle: DataLoader workers get copies.

    Attributes:
        together: small batches of training are read so many windows at a time.
    """

    together = 64

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


class Place(NamedTuple):
    """Where a document lies in a split.

    Attributes:
        key: of the document in its corpus.
        start: its first token in the split.
        stop: one more than its last token, which is its boundary token where it has one.
        number: of the document in the split.
    """

    key: str
    start: int
    stop: int
    number: int


class Documents(ABC):
    """Where the documents of one split lie. Cheap to open.

    Args:
        count: documents in the split.
        tokens: in it.
    """

    def __init__(self, count: int, tokens: int) -> None:
        self._count, self._tokens = count, tokens

    def __len__(self) -> int:
        return self._count

    @abstractmethod
    def starts(self) -> npt.NDArray[np.int64]:
        """(D,) position of the first token of each document in the split, ascending."""

    @abstractmethod
    def _key(self, number: int) -> str:
        """Of a document in its corpus."""

    def find(self, token: int) -> Place:
        """The document that the token at a position belongs to, by bisection."""
        starts = self.starts()
        number = int(np.searchsorted(starts, token, side="right")) - 1
        if not 0 <= token < self._tokens or number < 0:
            raise IndexError(f"token {token} of {self._tokens}")
        stop = self._tokens if number + 1 == self._count else int(starts[number + 1])
        return Place(self._key(number), int(starts[number]), stop, number)


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

    def called(self, name: str) -> "TokenSource":
        """The source that a ``TokenSpan`` names; itself where it is not a mixture."""
        return self

    def token_bytes(self) -> Ids | None:
        """(vocab_size,) bytes of text that each id decodes to, 0 for special tokens; or unknown."""
        return None

    def window_facts(self, sequence: int) -> dict[str, str | int | float]:
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
