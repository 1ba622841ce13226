"""Texts of different lengths that are continued together, by one token each in one forward.

They are aligned at the last token, so that the next one has one place in the cache for all of them.
What pads the shorter ones is masked, and each text counts its own positions. Texts of one length
have no mask, and a text alone is computed exactly as in ``sample.generate``; a mask changes the
order of sums, and logits by rounding.

When the texts change, all are read again: reading is parallel, where continuing is not.

Shapes: B texts, T positions to read, S positions with those in the cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from llm_train.model.network.cache import Cache, CachedLanguageModel
from llm_train.model.network.confined import Confinement
from llm_train.model.network.sample import Choose, read, window


@dataclass(eq=False)
class RaggedText:
    """A text that is being continued.

    Attributes:
        context: what the next token follows.
        choose: takes that from logits.
    """

    context: list[int]
    choose: Choose


class RaggedBatch:
    """Keeps the keys and values of the texts that it continued last.

    Args:
        network: takes masks (``document_masks`` of its configuration), or gets equal lengths.
    """

    def __init__(self, network: CachedLanguageModel) -> None:
        self._network = network
        self._rows: list[RaggedText] = []
        self._cache: Cache = []

    def step(self, rows: list[RaggedText]) -> list[int]:
        """Adds a token to each of ``rows``, and returns them; other texts are forgotten."""
        seen = [window(self._network, row.context) for row in rows]
        cut = any(len(context) < len(row.context) for context, row in zip(seen, rows, strict=True))
        if cut or self._rows != rows:
            self._rows, self._cache = list(rows), self._network.new_cache()
        for row, context in zip(rows, seen, strict=True):
            row.context = context
        longest, start = max(map(len, seen)), self._cache[0].length
        padded = [[*[0] * (longest - len(context)), *context][start:] for context in seen]
        given = {} if min(map(len, seen)) == longest else {"documents": self._apart(seen, start)}
        logits = read(self._network, padded, self._cache, **given)
        tokens = [row.choose(found) for row, found in zip(rows, logits, strict=True)]
        for row, token in zip(rows, tokens, strict=True):
            row.context.append(token)
        return tokens

    def _apart(self, contexts: list[list[int]], start: int) -> Confinement:
        """Hides what pads texts, from position ``start`` on."""
        longest = max(map(len, contexts))
        device = next(self._network.parameters()).device
        before = torch.tensor([[longest - len(context)] for context in contexts], device=device)
        keys = torch.arange(longest, device=device)  # (S,)
        queries = keys[start:, None]  # (T, 1)
        # Padding sees itself: attention to nothing is not a number.
        mask = (keys <= queries) & ((keys >= before[:, None]) | (keys == queries))  # (B, T, S)
        return Confinement((keys[start:] - before).clamp(min=0), mask[:, None])
