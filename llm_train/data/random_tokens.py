"""Tokens that exist nowhere: each is computed from its position.

For smoke tests and for benchmarks that must not wait for a disk. Small ids are more frequent than
large ones, so that there is something to learn and the least possible loss is known.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llm_train.data.base import HELD_OUT, Ids
from llm_train.data.order import keys, mix
from llm_train.data.token_source import TokenSource, Windows
from llm_train.data.windows import HeldOutWindows, Tokens, TrainWindows
from llm_train.errors import check_at_least


@dataclass(frozen=True, kw_only=True)
class RandomTokens(TokenSource):
    """Independent draws: id = floor(vocabulary x u^3) with u uniform in [0, 1).

    Attributes:
        vocabulary: number of ids, at least 2.
        length: training tokens.
        held_out_length: held-out tokens; 0 holds nothing out.
        seed: another seed gives other tokens.
    """

    vocabulary: int = 256
    length: int = 1 << 20
    held_out_length: int = 1 << 14
    seed: int = 0

    unmasked = True

    def __post_init__(self) -> None:
        check_at_least(self, 2, "vocabulary", below=1 << 31)
        check_at_least(self, 2, "length", hint=" tokens")
        if self.held_out_length:
            check_at_least(self, 2, "held_out_length", hint=" tokens, or 0")

    def fingerprint(self) -> str:
        """The configuration is the data."""
        return f"random-{self.vocabulary}-{self.length}-{self.held_out_length}-{self.seed}"

    def vocab_size(self) -> int:
        """As configured."""
        return self.vocabulary

    def train_windows(self, sequence: int, seed: int) -> Windows:
        """Windows of the training stream."""
        return TrainWindows(self._tokens("train", self.length), sequence, seed, self.fingerprint())

    def held_out_windows(self, sequence: int, name: str = HELD_OUT) -> Windows:
        """Windows of another stream with the same distribution."""
        return HeldOutWindows(self._tokens(name, self.held_out_length), sequence)

    def held_out_sets(self) -> tuple[str, ...]:
        """One, unless it would be empty."""
        return (HELD_OUT,) if self.held_out_length else ()

    def _tokens(self, stream: str, length: int) -> "ComputedTokens":
        return ComputedTokens(length, self.vocabulary, f"random/{self.seed}/{stream}")

    def entropy_nats(self) -> float:
        """The least loss a network can reach, in nats per token."""
        probabilities = np.diff(np.cbrt(np.arange(self.vocabulary + 1) / self.vocabulary))
        return -float(np.sum(probabilities * np.log(probabilities)))

    def description(self) -> dict[str, str | int | float | None]:
        """Counts and the loss at both ends: knowing nothing and knowing the distribution."""
        return {
            "train_tokens": self.length,
            "held_out_tokens": self.held_out_length,
            "vocab_size": self.vocabulary,
            "tokenizer": "",
            "uniform_nats": math.log(self.vocabulary),
            "entropy_nats": self.entropy_nats(),
        }


class ComputedTokens(Tokens):
    """A row of ids given by a hash of the position."""

    def __init__(self, length: int, vocabulary: int, name: str) -> None:
        self._length = length
        self._vocabulary = vocabulary
        self._key = keys(name, 1)[0]

    def __len__(self) -> int:
        return self._length

    def rows(self, starts: Sequence[int], length: int) -> Ids:
        """Computes all at once."""
        positions = np.add.outer(np.array(starts), np.arange(length)).astype(np.uint64)
        # Multiplying by an odd constant first keeps neighbouring positions apart.
        hashed = mix(positions * np.uint64(0x9E3779B97F4A7C15), self._key)
        uniform = (hashed >> np.uint64(11)).astype(np.float64) / (1 << 53)
        return (uniform * uniform * uniform * self._vocabulary).astype(np.int32)
