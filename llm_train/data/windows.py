"""Which tokens belong to sample number i, as arithmetic.

Training windows are cut every S tokens from an offset that changes with the epoch, so that a second
pass does not show the same beginnings, and are visited in a keyed random order. Held-out windows do
not move: they tile the tokens from the first, so that each token after it is scored exactly once.
"""

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, chain

import numpy as np
import numpy.typing as npt

from llm_train.data.apportion import Apportionment, Counts
from llm_train.data.base import NO_TOKEN, Ids
from llm_train.data.order import keys, permute
from llm_train.data.token_source import TokenSpan, Windows
from llm_train.errors import DataError

# Starts are computed for so many neighbours at a time: a thousand cost little more than one.
_BLOCK = 8192


class Tokens(ABC):
    """A long row of token ids that is read in pieces. Cheap to pickle."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def rows(self, starts: Sequence[int], length: int) -> Ids:
        """(N, length) tokens from each of N ``starts`` on, in an array of their own.

        All of them exist. Their type is that which is read fastest: what training copies to the
        device.
        """


class Located(Windows):
    """Windows whose places are computed for many neighbouring indices at a time, and kept."""

    def __init__(self) -> None:
        self._blocks: dict[int, list[int]] = {}

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_blocks": {}}

    @abstractmethod
    def compute(self, samples: npt.NDArray[np.int64]) -> list[int]:
        """A number for each of ``samples`` that says where it is."""

    def located(self, indices: npt.ArrayLike) -> list[int]:
        """What ``compute`` says of ``indices``."""
        samples = np.asarray(indices, dtype=np.int64).reshape(-1)
        numbers: list[int] = samples.tolist()  # few: plain integers are faster than arrays
        if not numbers:
            return numbers
        first, last = min(numbers) // _BLOCK, max(numbers) // _BLOCK
        if last - first > 1:
            return self.compute(samples)
        places = self._block(first) if first == last else self._block(first) + self._block(last)
        before = first * _BLOCK
        return [places[number - before] for number in numbers]

    def _block(self, number: int) -> list[int]:
        if number not in self._blocks:
            while len(self._blocks) > 1:
                del self._blocks[min(self._blocks)]
            first = number * _BLOCK
            self._blocks[number] = self.compute(np.arange(first, first + _BLOCK))
        return self._blocks[number]


class TrainWindows(Located):
    """Endless windows in an order that depends on seed, fingerprint and sample index alone.

    Args:
        tokens: the training tokens.
        sequence: inputs per window; windows hold one token more.
        seed: of the run.
        fingerprint: of the data.
    """

    def __init__(self, tokens: Tokens, sequence: int, seed: int, fingerprint: str) -> None:
        super().__init__()
        if len(tokens) < sequence + 1:
            raise DataError(
                f"batch.sequence={sequence} needs {sequence + 1} training tokens, the data have "
                f"{len(tokens)}; shorten the sequence or prepare more text"
            )
        self._tokens = tokens
        self._sequence = sequence
        self._order = f"llm_train/{seed}/{fingerprint}"
        # One window fewer than would fit at offset 0, so that every offset below S has room.
        self._count = max(1, len(tokens) // sequence - 1)
        self._offsets = min(sequence, len(tokens) - self._count * sequence)

    def __len__(self) -> int:
        return self._count

    def located(self, indices: npt.ArrayLike) -> list[int]:
        """Positions of first tokens."""
        # A block of few windows would span thousands of epochs, each with an order of its own.
        if self._count < _BLOCK // 64:
            return self.compute(np.asarray(indices, dtype=np.int64).reshape(-1))
        return super().located(indices)

    def compute(self, samples: npt.NDArray[np.int64]) -> list[int]:
        """Positions of first tokens, from the permutation of each epoch."""
        epochs, places = np.divmod(samples, self._count)
        out = np.empty_like(samples)
        for epoch in np.unique(epochs):
            name = f"{self._order}/{epoch}"
            here = epochs == epoch
            offset = keys(f"{name}/offset", 1)[0] % self._offsets
            out[here] = permute(places[here], self._count, name) * self._sequence + offset
        return list(out.tolist())

    def batch(self, indices: npt.ArrayLike) -> Ids:
        """Windows number ``indices``, which may lie in any epoch, as (N, S + 1)."""
        return self._tokens.rows(self.located(indices), self._sequence + 1)

    def spans(self, index: int) -> list[TokenSpan]:
        """One span."""
        [start] = self.located([index])
        return [TokenSpan("", start, start + self._sequence + 1)]


class HeldOutWindows(Windows):
    """Windows that share one token with their neighbour; the last is padded with -1.

    Args:
        tokens: the held-out tokens.
        sequence: inputs per window; windows hold one token more.
    """

    def __init__(self, tokens: Tokens, sequence: int) -> None:
        self._tokens = tokens
        self._sequence = sequence

    def __len__(self) -> int:
        return max(0, -(-(len(self._tokens) - 1) // self._sequence))

    def batch(self, indices: npt.ArrayLike) -> Ids:
        """Windows number ``indices`` in 0 .. len - 1 as (N, S + 1)."""
        places = np.asarray(indices, dtype=np.int64).reshape(-1)
        out = np.full((places.size, self._sequence + 1), NO_TOKEN, dtype=np.int32)
        for row, place in zip(out, places.tolist(), strict=True):
            if not 0 <= place < len(self):
                raise IndexError(f"held-out window {place} of {len(self)}")
            start = place * self._sequence
            length = min(row.size, len(self._tokens) - start)
            row[:length] = self._tokens.rows([start], length)[0]
        return out


class JoinedWindows(Windows):
    """Windows of several sources, one after another; a batch has windows of one of them.

    Args:
        parts: all of one sequence.
    """

    def __init__(self, parts: Sequence[Windows]) -> None:
        self._parts = parts
        self._firsts = [0, *accumulate(map(len, parts))]

    def __len__(self) -> int:
        return self._firsts[-1]

    def batch(self, indices: npt.ArrayLike) -> Ids:
        """Windows number ``indices``; a smaller one of another part stands for the part's first."""
        places = np.asarray(indices, dtype=np.int64)
        part = bisect_right(self._firsts, int(places.max())) - 1
        return self._parts[part].batch(np.maximum(places - self._firsts[part], 0))


class MixedWindows(Located):
    """Windows of several sources; their order decides which one each comes from.

    Args:
        windows: of each source.
        order: which source each sample comes from.
        names: of the sources.
    """

    def __init__(
        self, windows: Sequence[Windows], order: Apportionment, names: Sequence[str]
    ) -> None:
        super().__init__()
        self._names = names
        self._windows = windows
        self._order = order

    def __len__(self) -> int:
        return sum(map(len, self._windows))

    def compute(self, samples: Counts) -> list[int]:
        """Source and number of each sample in one integer."""
        sources, numbers = self._order.places(samples)
        return list((numbers * len(self._windows) + sources).tolist())

    def batch(self, indices: npt.ArrayLike) -> Ids:
        """Windows number ``indices`` as (N, S + 1)."""
        rows: dict[int, list[int]] = {}
        numbers: dict[int, list[int]] = {}
        for row, place in enumerate(self.located(indices)):
            number, source = divmod(place, len(self._windows))
            rows.setdefault(source, []).append(row)
            numbers.setdefault(source, []).append(number)
        parts = [self._windows[source].batch(numbers[source]) for source in rows]
        return np.concatenate(parts)[np.argsort(list(chain.from_iterable(rows.values())))]

    def spans(self, index: int) -> list[TokenSpan]:
        """Those of the source that the sample comes from, with its name."""
        number, source = divmod(self.located([index])[0], len(self._windows))
        spans, name = self._windows[source].spans(number), self._names[source]
        return [span._replace(source=f"{name}/{span.source}".strip("/")) for span in spans]
