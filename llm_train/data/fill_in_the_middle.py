"""Documents rearranged so that the middle comes last (Bavarian et al., arXiv:2207.14255).

A network that reads prefix and suffix first learns to fill in what is between them, at next to no
cost for reading from left to right. Each document of a window, or what the window has of it, is
cut at two places and becomes ``PRE prefix SUF suffix MID middle`` (PSM), or ``PRE SUF suffix MID
prefix middle`` (SPM, the paper's variant 2). It grows by three tokens, so that the end of the
window is cut off. Whether and where follows from the seed and the sample's number alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import tokenizers

from llm_train.data.base import Ids
from llm_train.data.order import keys
from llm_train.data.token_source import TokenSpan, Windows
from llm_train.errors import ConfigError

_WHOLE = 1 << 64  # keys are below


@dataclass(frozen=True, kw_only=True)
class FillInTheMiddle:
    """How many documents are rearranged, and by which tokens of the tokenizer.

    Attributes:
        rates: share of the documents by source; a source that is left out has 0.
        suffix_first: share of those that become SPM; the others become PSM.
        prefix: the token before the prefix.
        suffix: the token before the suffix.
        middle: the token before the middle.
    """

    rates: dict[str, float] = field(default_factory=dict)
    suffix_first: float = 0.5
    prefix: str = "<|fim_prefix|>"
    suffix: str = "<|fim_suffix|>"
    middle: str = "<|fim_middle|>"

    def __post_init__(self) -> None:
        if not all(0 <= share <= 1 for share in (*self.rates.values(), self.suffix_first)):
            raise ConfigError(
                f"rates={self.rates} and suffix_first={self.suffix_first} must be between 0 and 1"
            )

    def sentinels(self, tokenizer: str) -> list[int]:
        """Ids of the three tokens in a tokenizer's JSON.

        Raises:
            ConfigError: it has not all of them.
        """
        known = tokenizers.Tokenizer.from_str(tokenizer) if tokenizer else None
        names = (self.prefix, self.suffix, self.middle)
        ids = {name: known.token_to_id(name) if known else None for name in names}
        found = [number for number in ids.values() if number is not None]
        if len(found) < len(names):
            raise ConfigError(
                "fill_in_the_middle: the sources' tokenizer has not all of the tokens "
                f"{', '.join(names)}; name three that it has, or prepare with one that has them"
            )
        return found

    def over(
        self, source: str, windows: Windows, *, tokenizer: str, end_of_text: int, order: str
    ) -> Windows:
        """Windows of ``source``, rearranged at its rate; ``order`` names seed and data."""
        if not (rate := self.rates.get(source)):
            return windows
        ids = self.sentinels(tokenizer)
        shares = [int(r * _WHOLE) for r in (rate, self.suffix_first)]
        return _Filled(windows, ids, shares, end_of_text, f"{order}/{source}/middle")


class _Filled(Windows):
    """Windows with some of their documents rearranged."""

    def __init__(
        self, windows: Windows, ids: list[int], shares: list[int], end_of_text: int, order: str
    ) -> None:
        self._windows, self._ids, self._shares = windows, ids, shares
        self._end_of_text, self._order = end_of_text, order

    def __len__(self) -> int:
        return len(self._windows)

    def batch(self, indices: npt.ArrayLike) -> Ids:
        """Windows number ``indices`` as (N, S + 1)."""
        out = self._windows.batch(indices)
        for row, index in zip(out, np.asarray(indices).reshape(-1).tolist(), strict=True):
            filled = np.concatenate([after for _, after in self._pieces(row, index)])[: row.size]
            row[: filled.size] = filled
        return out

    def spans(self, index: int) -> list[TokenSpan]:
        """One for each document, with the tokens that were put into it; the last may be cut off."""
        pieces, found = self._pieces(self._windows.batch([index])[0], index), list[TokenSpan]()
        for span in self._windows.spans(index):
            start, stop, added = span.start, span.start, 0
            while stop < span.stop:  # a document never begins in one span and ends in another
                before, after = next(pieces)
                stop += before.size
                added += after.size - before.size
                if stop == span.stop or before.tolist() == [self._end_of_text]:
                    found.append(span._replace(start=start, stop=stop, added=added))
                    start, added = stop, 0
        return found

    def _pieces(self, row: Ids, index: int) -> Iterator[tuple[Ids, Ids]]:
        """The documents of a window and the tokens between them, as they were and rearranged."""
        length = int(np.count_nonzero(row >= 0))  # what follows is padding
        ends = np.flatnonzero(row[:length] == self._end_of_text)
        documents = np.split(row[:length], np.unique([*ends, *(ends + 1)]))
        for number, document in enumerate(documents):
            yield document, self._rearranged(document, f"{self._order}/{index}/{number}")

    def _rearranged(self, document: Ids, name: str) -> Ids:
        whether, how, *cuts = keys(name, 4)
        if document.size < 2 or whether >= self._shares[0]:
            return document
        start, stop = sorted(cut % (document.size + 1) for cut in cuts)
        prefix, middle, suffix = np.split(document, [start, stop])
        pre, suf, mid = (np.full(1, each, document.dtype) for each in self._ids)
        if how < self._shares[1]:
            return np.concatenate([pre, suf, suffix, mid, prefix, middle])
        return np.concatenate([pre, prefix, suf, suffix, mid, middle])
