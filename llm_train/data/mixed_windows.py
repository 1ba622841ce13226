"""Windows of several sources in one order, read a few batches at a time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt

from llm_train.data.apportion import Apportionment, Counts
from llm_train.data.base import Ids
from llm_train.data.token_source import TokenSpan, Windows
from llm_train.data.windows import Located

_TOGETHER = 64  # windows


class MixedWindows(Located):
    """Windows of several sources; their order decides which one each comes from.

    A small batch has few windows of each source, and asking a source costs as much as several
    windows. A rank's batches come in equal steps, so that the next ones are read along with it.

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
        self._last = self._step = 0
        self._ahead: dict[bytes, Ids] = {}

    def __getstate__(self) -> dict[str, object]:
        return {**super().__getstate__(), "_ahead": {}}

    def __len__(self) -> int:
        return sum(map(len, self._windows))

    def compute(self, samples: Counts) -> list[int]:
        """Source and number of each sample in one integer."""
        sources, numbers = self._order.places(samples)
        return list((numbers * len(self._windows) + sources).tolist())

    def batch(self, indices: npt.ArrayLike) -> Ids:
        """Windows number ``indices`` as (N, S + 1)."""
        samples = np.asarray(indices, dtype=np.int64).reshape(-1)
        first, size = int(samples[0]), samples.size
        before, self._step = self._step, first - self._last
        self._last = first
        if (found := self._ahead.pop(samples.tobytes(), None)) is not None:
            return found
        if self._step != before or self._step <= 0 or size > _TOGETHER // 2:
            return self._read(samples)
        batches = [samples + turn * self._step for turn in range(_TOGETHER // size)]
        rows = self._read(np.concatenate(batches))
        self._ahead = {
            batch.tobytes(): rows[turn * size : (turn + 1) * size]
            for turn, batch in enumerate(batches)
        }
        return self._ahead.pop(samples.tobytes())

    def _read(self, samples: Counts) -> Ids:
        """Reads the windows of each source together, and puts them in order."""
        rows: dict[int, list[int]] = {}
        numbers: dict[int, list[int]] = {}
        for row, place in enumerate(self.located(samples)):
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
