import pickle
from collections.abc import Sequence

import numpy as np
import pytest

from llm_train.data import RandomTokens
from llm_train.data.base import NO_TOKEN, Ids
from llm_train.data.windows import HeldOutWindows, Tokens, TrainWindows
from llm_train.errors import ConfigError, DataError


class Counting(Tokens):
    """A source in which token i has the value i."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def rows(self, starts: Sequence[int], length: int) -> Ids:
        assert min(starts) >= 0
        assert max(starts) + length <= self.length
        return np.array(starts)[:, None] + np.arange(length)


@pytest.mark.parametrize("length", [2, 3, 9, 10, 11, 100, 101])
@pytest.mark.parametrize("sequence", [1, 3, 10])
def test_held_out_windows_score_each_token_once(length: int, sequence: int) -> None:
    windows = HeldOutWindows(Counting(length), sequence)
    rows = windows.batch(np.arange(len(windows)))
    inputs, targets = rows[:, :-1], rows[:, 1:]
    assert rows.dtype == np.int32
    assert targets[targets != NO_TOKEN].tolist() == list(range(1, length))
    assert np.array_equal(inputs[targets != NO_TOKEN], np.arange(length - 1))
    assert (rows[:-1] != NO_TOKEN).all()


@pytest.mark.parametrize("length", [0, 1])
def test_nothing_to_score_is_no_window(length: int) -> None:
    assert len(HeldOutWindows(Counting(length), 4)) == 0


def test_held_out_index_is_bounded() -> None:
    windows = HeldOutWindows(Counting(10), 3)
    with pytest.raises(IndexError):
        windows.batch([len(windows)])
    with pytest.raises(IndexError):
        windows.batch([-1])


@pytest.mark.parametrize("length", [6, 7, 9, 10, 11, 14, 15, 16, 103])
def test_an_epoch_is_disjoint_windows_that_fit(length: int) -> None:
    sequence = 5
    windows = TrainWindows(Counting(length), sequence, seed=1, fingerprint="f")
    for epoch in range(6):
        indices = epoch * len(windows) + np.arange(len(windows))
        starts = np.sort(np.array(windows.located(indices)))
        assert (np.diff(starts) == sequence).all()
        assert 0 <= starts[0] < sequence
        rows = windows.batch(indices)
        assert rows.shape == (len(windows), sequence + 1)
        assert (np.diff(rows, axis=1) == 1).all()


def test_epochs_cut_and_order_differently() -> None:
    windows = TrainWindows(Counting(10_000), 10, seed=1, fingerprint="f")
    n = len(windows)
    assert n == 999
    starts = np.array(windows.located(np.arange(20 * n))).reshape(20, n)
    assert len({int(row.min()) for row in starts}) > 5
    assert {int(row.min()) for row in starts} <= set(range(10))
    orders = {tuple((row - row.min()).tolist()) for row in starts}
    assert len(orders) == 20


def test_order_depends_on_seed_fingerprint_and_index_alone() -> None:
    def starts(seed: int, fingerprint: str) -> list[int]:
        windows = TrainWindows(Counting(1000), 7, seed=seed, fingerprint=fingerprint)
        return windows.located(np.arange(300))

    assert starts(1, "f") == starts(1, "f")
    assert starts(1, "f") != starts(2, "f")
    assert starts(1, "f") != starts(1, "g")
    windows = TrainWindows(Counting(1000), 7, seed=1, fingerprint="f")
    shuffled = np.random.default_rng(0).permutation(300)
    assert windows.located(shuffled) == np.array(starts(1, "f"))[shuffled].tolist()


def test_golden_starts_never_change() -> None:
    source = RandomTokens(vocabulary=50, length=1000, seed=3)
    windows = source.train_windows(8, 7)
    assert isinstance(windows, TrainWindows)
    assert windows.located([0, 1, 2, 124, 125, 620]) == [540, 604, 852, 39, 367, 323]
    assert windows.batch([0])[0].tolist() == [1, 3, 36, 36, 2, 46, 10, 25, 0]


def test_too_few_tokens_is_an_error() -> None:
    with pytest.raises(DataError, match=r"batch\.sequence=10 needs 11 training tokens.*have 10"):
        TrainWindows(Counting(10), 10, seed=1, fingerprint="f")


def test_random_tokens_have_the_distribution_they_claim() -> None:
    source = RandomTokens(vocabulary=16, length=1 << 17, seed=5)
    rows = source.train_windows(1024, 0).batch(np.arange(100))
    assert rows.min() >= 0
    assert rows.max() < 16
    frequencies = np.bincount(rows.ravel(), minlength=16) / rows.size
    expected = np.diff(np.cbrt(np.arange(17) / 16))
    assert np.abs(frequencies - expected).max() < 0.01
    entropy = -np.sum(expected * np.log(expected))
    assert source.entropy_nats() == pytest.approx(entropy)
    other = RandomTokens(vocabulary=16, length=1 << 17, seed=6)
    assert other.fingerprint() != source.fingerprint()
    held_out = source.held_out_windows(64)
    assert not np.array_equal(held_out.batch([0])[0], source.train_windows(64, 0).batch([0])[0])
    assert source.token_bytes() is None
    assert source.check() == []
    assert source.description()["vocab_size"] == source.vocab_size() == 16


def test_windows_survive_pickling() -> None:
    windows = RandomTokens().train_windows(32, 1)
    copy = pickle.loads(pickle.dumps(windows))
    assert np.array_equal(copy.batch([77])[0], windows.batch([77])[0])


@pytest.mark.parametrize("field", ["length", "held_out_length", "vocabulary"])
def test_random_tokens_refuses_nonsense(field: str) -> None:
    with pytest.raises(ConfigError, match=f"{field}=1 must"):
        RandomTokens(**{field: 1})
