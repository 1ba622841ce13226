"""Windows of whole documents, by best fit decreasing (Ding et al., arXiv:2404.10830).

A document that is longer than a window is cut into windows and a rest, each of which begins with
the last token of the one before, so that no target is lost. Rests and short documents, the longest
first, each go where the least room is left that suffices. A window is filled up with -1.

What is unusual: only the lengths are packed. Pieces of one length are alike, so that a step fills
as many windows with them as have the same room, and a million pieces take a few thousand steps. A
corpus of more is dealt out to groups, each a regular sample of it that is packed by itself: memory
is bounded, nothing is stored, and the windows are a function of lengths and sequence alone.

Shapes: N windows, S sequence, P pieces.
"""

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from llm_train.data.base import NO_TOKEN, Ids
from llm_train.data.order import permute
from llm_train.data.token_source import Documents, TokenSpan, Windows
from llm_train.data.windows import Tokens

_GROUP = 1 << 20  # pieces, which take about 40 bytes each

I64 = npt.NDArray[np.int64]


class Step(NamedTuple):
    """Pieces of one size that go to windows with the same room left.

    Attributes:
        size: of each piece.
        room: left in each window before; all of it in a new one.
        windows: that are filled, each with as many pieces as fit, and the last with what remains.
        pieces: in all.
    """

    size: int
    room: int
    windows: int
    pieces: int


def steps(counts: Sequence[int], capacity: int) -> Iterator[Step]:
    """Packs ``counts[size]`` pieces of each size, the largest first, each into the least room.

    >>> [tuple(step) for step in steps([0, 0, 3, 0, 1, 1], 7)]
    [(5, 7, 1, 1), (4, 7, 1, 1), (2, 2, 1, 1), (2, 3, 1, 1), (2, 7, 1, 1)]
    """
    rooms: list[int] = []  # ascending
    have = [0] * (capacity + 1)  # windows by room
    for size in range(len(counts) - 1, 0, -1):
        left = int(counts[size])
        while left:
            place = bisect_left(rooms, size)
            room = rooms[place] if place < len(rooms) else capacity
            each = room // size  # a window with one more piece has the least room that suffices
            windows = -(-left // each)
            if room < capacity:
                windows = min(windows, have[room])
                have[room] -= windows
                if not have[room]:
                    rooms.pop(place)
            pieces = min(left, windows * each)
            yield Step(size, room, windows, pieces)
            full, rest = divmod(pieces, each)
            for more, used in ((full, each), (bool(rest), rest)):
                if more and (now := room - used * size):
                    if not have[now]:
                        insort(rooms, now)
                    have[now] += more
            left -= pieces


def windows_of(sizes: I64, capacity: int) -> I64:
    """(P,) number of the window that each piece goes to; of pieces of one size the first first."""
    order = np.argsort(-sizes, kind="stable")
    out = np.empty_like(sizes)
    by_room: dict[int, list[int]] = defaultdict(list)
    made = done = 0
    for size, room, windows, pieces in steps(np.bincount(sizes).tolist(), capacity):
        if room == capacity:
            numbers = list(range(made, made := made + windows))
        else:
            numbers = by_room[room][-windows:]
            del by_room[room][-windows:]
        each = room // size
        out[order[done : done + pieces]] = np.repeat(numbers, each)[:pieces]
        full, rest = divmod(pieces, each)
        by_room[room - each * size] += numbers[:full]
        if rest:
            by_room[room - rest * size] += numbers[full:]
        done += pieces
    return out


@lru_cache(maxsize=4)  # one of few elements takes milliseconds
def _shuffled(count: int, name: str) -> I64:
    return permute(np.arange(count), count, name)


class _Packed(NamedTuple):
    """A group in one epoch: pieces window by window, where each window's begin, and their order."""

    begins: I64
    sizes: I64
    edges: I64
    turns: I64


class PackedWindows(Windows):
    """Endless windows in an order that depends on seed, fingerprint and sample index alone.

    An epoch takes one group after another, in an order of its own, and the windows of a group in a
    random order.

    Args:
        tokens: the training tokens.
        documents: where they lie.
        sequence: inputs per window; windows hold one token more.
        seed: of the run.
        fingerprint: of the data.
    """

    def __init__(
        self, tokens: Tokens, documents: Documents, sequence: int, seed: int, fingerprint: str
    ) -> None:
        self._tokens, self._documents, self._sequence = tokens, documents, sequence
        self._order = f"llm_train/{seed}/{fingerprint}"
        self._groups = -(-(len(documents) + len(tokens) // sequence) // _GROUP)
        self._counts: list[int] = []  # windows by group
        self._held = self._cuts = 0
        for group in range(self._groups):
            counts = np.bincount(self._pieces(group)[1])
            self._held += int(counts @ np.arange(counts.size))
            self._cuts += int(counts.sum())
            made = steps(counts.tolist(), sequence + 1)
            self._counts.append(sum(step.windows for step in made if step.room > sequence))
        self._cuts -= len(documents)
        self._last: dict[tuple[int, int], _Packed] = {}

    def __len__(self) -> int:
        return sum(self._counts)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_last": {}}

    def facts(self) -> dict[str, str | int | float]:
        """Windows of an epoch, the share of their places that is empty, and cuts in documents."""
        slots = len(self) * (self._sequence + 1)
        return {
            "packed_windows": len(self),
            "packed_padding": round(1.0 - self._held / slots, 6),
            "packed_cuts": self._cuts,
        }

    def _pieces(self, group: int) -> tuple[I64, I64]:
        """(P,) first token and size of each piece of a group's documents, in their order."""
        starts, every = self._documents.starts(), self._groups
        stops = np.append(starts[group + 1 :: every], len(self._tokens))
        first = np.asarray(starts[group::every], dtype=np.int64)
        stops = stops[: first.size]
        length = self._sequence
        cut = np.maximum(1, -(-(stops - first - 1) // length))  # pieces of each document
        number = np.arange(cut.sum()) - np.repeat(np.cumsum(cut) - cut, cut)
        begins = np.repeat(first, cut) + number * length
        return begins, np.minimum(length + 1, np.repeat(stops, cut) - begins)

    def _packed(self, epoch: int, group: int) -> _Packed:
        if (epoch, group) not in self._last:
            while len(self._last) > 1:
                del self._last[next(iter(self._last))]
            begins, sizes = self._pieces(group)
            windows = windows_of(sizes, self._sequence + 1)
            order = np.lexsort((begins, windows))
            count = self._counts[group]
            self._last[epoch, group] = _Packed(
                begins=begins[order],
                sizes=sizes[order],
                edges=np.searchsorted(windows[order], np.arange(count + 1)),
                turns=_shuffled(count, f"{self._order}/{epoch}/{group}"),
            )
        return self._last[epoch, group]

    def batch(self, indices: npt.ArrayLike) -> Ids:
        """Windows number ``indices``, which may lie in any epoch, as (N, S + 1)."""
        samples = np.asarray(indices, dtype=np.int64).reshape(-1)
        out = np.full((samples.size, self._sequence + 1), NO_TOKEN, dtype=np.int32)
        for row, sample in zip(out, samples.tolist(), strict=True):
            filled = 0
            for begin, size in self._places(sample):
                row[filled : filled + size] = self._tokens.rows([begin], size)[0]
                filled += size
        return out

    def spans(self, index: int) -> list[TokenSpan]:
        """One for each piece."""
        return [TokenSpan("", begin, begin + size) for begin, size in self._places(index)]

    def _places(self, sample: int) -> Iterator[tuple[int, int]]:
        """First token and size of each piece of a sample, in the order of the corpus."""
        epoch, place = divmod(sample, len(self))
        groups = _shuffled(self._groups, f"{self._order}/{epoch}")
        after = np.cumsum(np.asarray(self._counts)[groups])
        turn = int(np.searchsorted(after, place, side="right"))
        packed = self._packed(epoch, int(groups[turn]))
        window = packed.turns[place - after[turn]]  # counted from the group's end
        first, last = packed.edges[window : window + 2]
        yield from zip(
            packed.begins[first:last].tolist(), packed.sizes[first:last].tolist(), strict=True
        )
