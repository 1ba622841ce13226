"""Which of several sources each sample comes from: exact over every prefix, and found by index.

The k-th sample of a source may come once the samples that the shares ask of it exceed k - 1, and
must have come when they reach k. So each sample has a window, and whoever takes among the open
windows the one that closes first meets all of them: no source is ever a whole sample ahead or
behind, whatever the shares and however they change (proportionate fairness: Baruah, Cohen, Plaxton
and Varvel, "Proportionate progress", Algorithmica 15, 1996; that such a sequence exists: Tijdeman,
"The chairman assignment problem", 1980). That rule goes sample by sample, but shares are fractions
of whole numbers, so that the sequence repeats itself soon: it is followed until it does, and any
later sample is one division and one look into a table.

All of it is arithmetic on whole numbers, since the order of a run must not depend on rounding.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from heapq import heappop, heappush

import numpy as np
import numpy.typing as npt

LIMIT = 100_000  # the longest period, which takes a fifth of a second to find
Counts = npt.NDArray[np.int64]


def whole_shares(weights: Sequence[float]) -> tuple[int, ...]:
    """Whole numbers in the ratios of ``weights``, their sum at most ``LIMIT``.

    Decimal weights are kept exactly where that is possible; else shares become multiples of
    1 / LIMIT by largest remainders, and of a weight above 0 at least one.

    >>> whole_shares([0.7, 0.2, 0.1]), whole_shares([1, 2]), sum(whole_shares([math.pi, 1, 0]))
    ((7, 2, 1), (1, 2), 100000)
    """
    exact = [Fraction(str(weight)) for weight in weights]
    shares = [weight / sum(exact) for weight in exact]
    period = math.lcm(*(share.denominator for share in shares))
    if period <= LIMIT:
        return tuple(int(share * period) for share in shares)
    counts = [max(int(share * LIMIT), int(share > 0)) for share in shares]
    while (missing := LIMIT - sum(counts)) != 0:
        step = 1 if missing > 0 else -1
        behind = [step * (s * LIMIT - c) for s, c in zip(shares, counts, strict=True)]
        counts[behind.index(max(behind))] += step
    return tuple(counts)


@dataclass(frozen=True)
class Shares:
    """Shares of the samples from one on.

    Attributes:
        first: that sample.
        counts: of each source among ``sum(counts)`` samples.
    """

    first: int
    counts: tuple[int, ...]


@dataclass(frozen=True)
class _Cycle:
    """Samples from ``first`` on, in which the same sequence of sources comes again and again.

    Attributes:
        first: the first of these samples.
        sources: (period,) the source of each.
        before: (sources,) samples of each source before ``first``.
    """

    first: int
    sources: npt.NDArray[np.uint16]
    before: Counts

    @cached_property
    def ranks(self) -> Counts:
        """(period,) how many samples of the same source come before each."""
        found = np.empty(self.sources.size, np.int64)
        for source, count in enumerate(self.counts.tolist()):
            found[self.sources == source] = np.arange(count)
        return found

    @cached_property
    def counts(self) -> Counts:
        """(sources,) samples of each source in a period."""
        return np.bincount(self.sources, minlength=self.before.size)


class Apportionment:
    """An endless sequence of sources.

    Args:
        stages: shares, the first from sample 0 on.
    """

    def __init__(self, stages: Sequence[Shares]) -> None:
        self._stretches = _stretches(tuple(stages))
        self._firsts = np.array([stretch.first for stretch in self._stretches])

    def places(self, samples: Counts) -> tuple[Counts, Counts]:
        """(N,) the source of each of ``samples`` (N,), and its number among those of the source."""
        sources, numbers = np.empty_like(samples), np.empty_like(samples)
        which = np.searchsorted(self._firsts, samples, side="right") - 1
        for index in np.unique(which):
            stretch, here = self._stretches[index], which == index
            period, place = np.divmod(samples[here] - stretch.first, stretch.sources.size)
            source = stretch.sources[place]
            sources[here] = source
            numbers[here] = (
                stretch.before[source] + period * stretch.counts[source] + stretch.ranks[place]
            )
        return sources, numbers

    def counts(self, samples: int) -> Counts:
        """(sources,) how many of the first ``samples`` come from each source."""
        stretch = self._stretches[int(np.searchsorted(self._firsts, samples, side="right")) - 1]
        periods, rest = divmod(samples - stretch.first, stretch.sources.size)
        last = np.bincount(stretch.sources[:rest], minlength=stretch.before.size)
        return stretch.before + periods * stretch.counts + last

    def digest(self, samples: int) -> str:
        """A hash of the sources of the first ``samples``: equal where no later stage reaches."""
        found = hashlib.sha256()
        for stretch in self._stretches:
            if (here := samples - stretch.first) > 0:
                found.update(f"{stretch.first}/{stretch.sources.size}/".encode())
                found.update(stretch.sources[:here].astype("<u2").tobytes())
        return found.hexdigest()


class _Rule:
    """Follows the rule sample by sample, from any state.

    What the shares ask of each source is counted in units of a common fraction of a sample.
    """

    def __init__(self, stages: Sequence[Shares]) -> None:
        self.unit = math.lcm(*(sum(stage.counts) for stage in stages))
        self.firsts = [stage.first for stage in stages]
        self.slopes = [[c * (self.unit // sum(s.counts)) for c in s.counts] for s in stages]
        self.starts = [[0] * len(stages[0].counts)]
        for stage in range(1, len(stages)):
            length = self.firsts[stage] - self.firsts[stage - 1]
            last = zip(self.starts[-1], self.slopes[stage - 1], strict=True)
            self.starts.append([start + slope * length for start, slope in last])
        self.now = 0
        self.done = [0] * len(stages[0].counts)
        self.jump(0, self.done)

    def _reaches(self, source: int, amount: int) -> float:
        """The least number of samples at which ``source`` is asked for ``amount`` > 0 units."""
        stage = len(self.firsts) - 1
        while self.starts[stage][source] >= amount:
            stage -= 1
        missing, slope = amount - self.starts[stage][source], self.slopes[stage][source]
        return self.firsts[stage] - (-missing // slope) if slope else math.inf

    def jump(self, samples: int, done: list[int]) -> None:
        """Goes on after ``samples``, of which ``done`` came from each source."""
        self.now += samples
        self.done = [a + b for a, b in zip(self.done, done, strict=True)]
        self._waiting: list[tuple[float, int]] = []  # when the window opens, source
        self._open: list[tuple[float, int]] = []  # when it closes, source
        for source in range(len(self.done)):
            self._await(source)

    def _await(self, source: int) -> None:
        asked = self.done[source] * self.unit + 1
        heappush(self._waiting, (self._reaches(source, asked) - 1, source))

    def next(self) -> int:
        """The source of the next sample."""
        while self._waiting and self._waiting[0][0] <= self.now:
            source = heappop(self._waiting)[1]
            asked = (self.done[source] + 1) * self.unit
            heappush(self._open, (self._reaches(source, asked), source))
        source = heappop(self._open)[1]
        self.done[source] += 1
        self.now += 1
        self._await(source)
        return source

    def ahead(self, stage: int) -> tuple[int, ...]:
        """Units that each source is ahead of what ``stage`` asks; the future depends on no more."""
        since = self.now - self.firsts[stage]
        asked = zip(self.done, self.starts[stage], self.slopes[stage], strict=True)
        return tuple(n * self.unit - start - slope * since for n, start, slope in asked)


@lru_cache(maxsize=8)
def _stretches(stages: tuple[Shares, ...]) -> list[_Cycle]:
    """The whole sequence; near the end of a stage it depends on the next one."""
    rule = _Rule(stages)
    found: list[_Cycle] = []

    def add(first: int, taken: list[int], before: list[int]) -> None:
        if taken:
            found.append(_Cycle(first, np.array(taken, np.uint16), np.array(before, np.int64)))

    for number, stage in enumerate(stages):
        period = sum(stage.counts)
        end = stages[number + 1].first if number + 1 < len(stages) else math.inf
        first, before, taken = rule.now, list(rule.done), list[int]()
        seen: dict[tuple[int, ...], tuple[int, list[int]]] | None = {}
        while rule.now < end:
            if seen is not None and (rule.now - stage.first) % period == 0:
                start, done = seen.setdefault(rule.ahead(number), (len(taken), list(rule.done)))
                cycle = taken[start:]
                # The windows that open until here close within another period.
                room = end - 1 - period - rule.now
                if cycle and room >= len(cycle):
                    add(first, taken[:start], before)
                    add(first + start, cycle, done)
                    if room == math.inf:
                        return found
                    times = int(room) // len(cycle)
                    each = [times * (b - a) for a, b in zip(done, rule.done, strict=True)]
                    rule.jump(times * len(cycle), each)
                    first, before, taken, seen = rule.now, list(rule.done), [], None
                    continue
            taken.append(rule.next())
        add(first, taken, before)
    return found
