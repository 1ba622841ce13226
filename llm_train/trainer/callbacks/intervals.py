"""Arithmetic on intervals of time, for timelines on which much happens at once.

Times are numbers in one unit, whatever it is. Nothing here knows what the intervals mean.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple, Protocol, TypeVar


class Timed(Protocol):
    """Something with a beginning and an end."""

    @property
    def start(self) -> float:
        """When it begins."""
        ...

    @property
    def end(self) -> float:
        """When it ends."""
        ...


T = TypeVar("T", bound=Timed)


class Claim(NamedTuple):
    """A wish to be charged for an interval.

    Attributes:
        start: when it begins.
        end: when it ends.
        rank: the lowest of those active at an instant is charged for it.
        label: what is charged.
    """

    start: float
    end: float
    rank: int
    label: str


class Union:
    """The union of intervals, as disjoint ones in order."""

    def __init__(self, intervals: Iterable[tuple[float, float]]) -> None:
        self._starts: list[float] = []
        self._ends: list[float] = []
        for start, end in sorted(intervals):
            if self._ends and start <= self._ends[-1]:
                self._ends[-1] = max(self._ends[-1], end)
            else:
                self._starts.append(start)
                self._ends.append(end)

    def __contains__(self, time: float) -> bool:
        index = bisect_right(self._starts, time) - 1
        return index >= 0 and time < self._ends[index]

    @property
    def length(self) -> float:
        """Time in which at least one of the intervals is active.

        >>> Union([(0, 2), (5, 6), (1, 3)]).length
        4
        """
        return sum(end - start for start, end in zip(self._starts, self._ends, strict=True))


def innermost(ranges: Iterable[T]) -> list[tuple[float, float, T]]:
    """Cuts nested ranges of one thread into pieces, each of which belongs to the innermost range.

    The pieces of a range add up to its self time. A range that outlives the one around it by a
    rounding error keeps its end.

    Returns:
        (start, end, range), disjoint and in order.
    """
    pieces: list[tuple[float, float, T]] = []
    open_ranges: list[T] = []
    now = float("-inf")

    def advance(time: float) -> None:
        """Everything up to ``time`` belongs to the range that was opened last."""
        nonlocal now
        if open_ranges and time > now:
            pieces.append((now, time, open_ranges[-1]))
        now = max(now, time)

    for each in sorted(ranges, key=lambda r: (r.start, -r.end)):
        while open_ranges and open_ranges[-1].end <= each.start:
            advance(open_ranges[-1].end)
            open_ranges.pop()
        advance(each.start)
        open_ranges.append(each)
    while open_ranges:
        advance(open_ranges[-1].end)
        open_ranges.pop()
    return pieces


def exclusive(claims: Sequence[Claim], start: float, end: float) -> dict[str, float]:
    """Time by label between ``start`` and ``end``, every instant charged at most once.

    >>> exclusive([Claim(0, 4, 1, "communication"), Claim(1, 3, 0, "matmul")], 0, 10)
    {'communication': 2, 'matmul': 2}
    """
    clipped = [c._replace(start=max(c.start, start), end=min(c.end, end)) for c in claims]
    waiting = sorted((c for c in clipped if c.start < c.end), reverse=True)  # earliest last
    points = sorted({time for c in waiting for time in (c.start, c.end)})
    totals: dict[str, float] = defaultdict(int)
    active: list[tuple[int, float, float, str]] = []  # a heap: rank, start, end, label
    for left, right in pairwise(points):
        while waiting and waiting[-1].start <= left:
            claim = waiting.pop()
            heapq.heappush(active, (claim.rank, claim.start, claim.end, claim.label))
        while active and active[0][2] <= left:
            heapq.heappop(active)
        if active:
            totals[active[0][3]] += right - left
    return dict(totals)
