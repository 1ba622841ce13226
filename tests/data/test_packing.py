"""Windows that hold whole documents."""

from __future__ import annotations

import pickle

import numpy as np
import numpy.typing as npt
import pytest

from llm_train.data import packing
from llm_train.data.base import NO_TOKEN
from llm_train.data.packing import PackedWindows, windows_of
from llm_train.data.token_source import Documents
from tests.data.test_windows import Counting

SEQUENCE = 32


class Lengths(Documents):
    """Documents of given lengths."""

    def __init__(self, lengths: npt.NDArray[np.int64]) -> None:
        super().__init__(lengths.size, int(lengths.sum()))
        self.lengths = lengths

    def starts(self) -> npt.NDArray[np.int64]:
        return np.cumsum(self.lengths) - self.lengths

    def _key(self, number: int) -> str:
        raise NotImplementedError


def make(count: int = 500, seed: int = 3) -> PackedWindows:
    lengths = np.random.default_rng(seed).geometric(1 / 20, count).astype(np.int64)
    return PackedWindows(Counting(int(lengths.sum())), Lengths(lengths), SEQUENCE, 1, "text")


def test_lengths_are_packed_as_one_by_one() -> None:
    """The rooms that are left are those of best fit decreasing as it is written down."""
    sizes = np.random.default_rng(0).integers(1, 34, 700)
    rooms: list[int] = []
    for size in sorted(sizes.tolist(), reverse=True):
        fitting = [room for room in rooms if room >= size]
        room = min(fitting, default=33)
        if fitting:
            rooms.remove(room)
        rooms.append(room - size)
    windows = windows_of(sizes, 33)
    held = np.bincount(windows, weights=sizes)
    assert sorted((33 - held).tolist()) == sorted(rooms)


@pytest.mark.parametrize("group", [1 << 20, 50])
def test_an_epoch_holds_every_target_once_and_cuts_no_document_that_fits(
    group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "_GROUP", group)
    windows = make()
    assert windows._groups == (1 if group > 50 else 17)
    documents = windows._documents
    starts = documents.starts().tolist()
    stops = [*starts[1:], len(windows._tokens)]
    epoch = windows.batch(np.arange(len(windows)))
    pieces = []  # first token and one more than the last
    for row in epoch:
        tokens = row[row != NO_TOKEN]
        assert (row[len(tokens) :] == NO_TOKEN).all()
        borders = np.flatnonzero(np.diff(tokens) != 1) + 1
        pieces += [(int(p[0]), int(p[-1]) + 1) for p in np.split(tokens, borders)]
        # Neighbours in the corpus that are neighbours in a window look like one piece.
    covered = np.zeros(len(windows._tokens), dtype=int)
    for first, stop in pieces:
        covered[first + (first not in set(starts)) : stop] += 1
    assert (covered == 1).all()
    long = [(a, b) for a, b in zip(starts, stops, strict=True) if b - a > SEQUENCE + 1]
    whole = sum(-(-(b - a - 1) // SEQUENCE) - 1 for a, b in long)
    assert windows.facts()["packed_cuts"] == whole > 0
    empty = float(np.mean(epoch == NO_TOKEN))
    assert windows.facts()["packed_padding"] == pytest.approx(empty, abs=1e-6)
    assert empty < 0.05


def test_the_order_is_a_function_of_the_index() -> None:
    windows = make()
    count = len(windows)
    again = pickle.loads(pickle.dumps(windows))
    for indices in ([5, 3 * count + 1, 0], np.arange(count - 2, count + 2)):
        assert np.array_equal(windows.batch(indices), again.batch(indices))
    second = windows.batch(np.arange(count, 2 * count))
    first = windows.batch(np.arange(count))
    assert not np.array_equal(first, second)
    assert sorted(map(bytes, first)) == sorted(map(bytes, second))
    spans = windows.spans(7)
    row = np.concatenate([np.arange(span.start, span.stop) for span in spans])
    assert np.array_equal(windows.batch([7])[0, : row.size], row)
