"""A data source: token ids in one ``.npy`` file, its end held out.

What is unusual: order, epochs, ranks and resume are not this file's business. It says how to read
a stretch of tokens; ``TrainWindows`` and ``HeldOutWindows`` turn that into samples by index.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llm_train.data import TokenSource, Windows
from llm_train.data.windows import HeldOutWindows, Tokens, TrainWindows

Ids = npt.NDArray[np.int32]


class Stretch(Tokens):
    """Tokens ``start .. stop`` of a file. Only the path is pickled, never the tokens."""

    def __init__(self, path: str, start: int, stop: int) -> None:
        self.path, self.start, self.stop = path, start, stop

    def __len__(self) -> int:
        return self.stop - self.start

    def rows(self, starts: Sequence[int], length: int) -> Ids:
        """(N, length) tokens of the stretch, from each of N ``starts`` on."""
        tokens = np.load(self.path, mmap_mode="r")[self.start : self.stop]
        return np.array([tokens[start : start + length] for start in starts], dtype=np.int32)


@dataclass(frozen=True, kw_only=True)
class NumpyTokens(TokenSource):
    """Reads a one-dimensional integer array.

    Attributes:
        path: the file.
        vocabulary: number of token ids.
        held_out: tokens at the end of the file that are held out.
    """

    path: str
    vocabulary: int
    held_out: int = 1000

    unmasked = True

    def check(self) -> list[str]:
        """Reports a missing file."""
        if not Path(self.path).is_file():
            return [f"data.source.path={self.path} does not exist; write it with numpy.save"]
        return []

    def fingerprint(self) -> str:
        """A hash of the file."""
        return hashlib.sha256(Path(self.path).read_bytes()).hexdigest()

    def vocab_size(self) -> int:
        """As configured."""
        return self.vocabulary

    def train_windows(self, sequence: int, seed: int) -> Windows:
        """Windows of everything before the held-out end."""
        tokens = Stretch(self.path, 0, self._length() - self.held_out)
        return TrainWindows(tokens, sequence, seed, self.fingerprint())

    def held_out_windows(self, sequence: int, name: str = "held_out") -> Windows:
        """Windows of the end."""
        length = self._length()
        return HeldOutWindows(Stretch(self.path, length - self.held_out, length), sequence)

    def description(self) -> dict[str, str | int | float | None]:
        """Counts to print at the start of a run."""
        return {"train_tokens": self._length() - self.held_out, "held_out_tokens": self.held_out}

    def _length(self) -> int:
        return int(np.load(self.path, mmap_mode="r").shape[0])
