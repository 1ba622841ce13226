import numpy as np
import pytest

from llm_train.data.order import keys, permute


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 31, 32, 33, 63, 64, 65, 97, 1000, 4096, 10007])
def test_is_a_bijection(n: int) -> None:
    for name in ("a", "b"):
        image = permute(np.arange(n), n, name)
        assert np.array_equal(np.sort(image), np.arange(n))


def test_scalar_equals_vectorised() -> None:
    n = 1237
    image = permute(np.arange(n), n, "x")
    assert [int(permute(i, n, "x")) for i in range(0, n, 17)] == image[::17].tolist()
    assert np.array_equal(permute(np.arange(n).reshape(1, -1), n, "x"), image.reshape(1, -1))


def test_golden_values_never_change() -> None:
    """A failure here means that every earlier run would continue on different data."""
    assert permute(range(7), 7, "golden").tolist() == [3, 1, 2, 6, 4, 5, 0]
    assert permute(range(8), 64, "golden").tolist() == [54, 52, 2, 17, 36, 56, 42, 25]
    assert permute(range(8), 1000, "golden").tolist() == [22, 135, 841, 355, 264, 950, 894, 639]
    huge = permute([0, 1, 2, 10**12 - 1], 10**12, "golden").tolist()
    assert huge == [108531896679, 991891399409, 176786929860, 236003158976]


def test_names_give_different_orders() -> None:
    images = {tuple(permute(np.arange(100), 100, f"{i}").tolist()) for i in range(50)}
    assert len(images) == 50
    assert keys("a", 2)[0] != keys("a", 2)[1]


@pytest.mark.parametrize("n", [16, 17, 100])
def test_every_place_is_equally_likely(n: int) -> None:
    trials = 1500
    seen = np.zeros((n, n))
    for trial in range(trials):
        seen[np.arange(n), permute(np.arange(n), n, f"uniform/{trial}")] += 1
    expected = trials / n
    chi_squared = ((seen - expected) ** 2 / expected).sum()
    freedom = (n - 1) ** 2
    # Six standard deviations of a chi-squared variable around its mean.
    assert abs(chi_squared - freedom) < 6 * np.sqrt(2 * freedom)


def test_neighbours_are_separated() -> None:
    n = 100_000
    image = permute(np.arange(n), n, "distance")
    distances = np.abs(np.diff(image))
    # Two independent uniform places are n / 3 apart on average.
    assert abs(distances.mean() / (n / 3) - 1) < 0.02
    assert abs(np.corrcoef(np.arange(n), image)[0, 1]) < 0.02


def test_an_index_outside_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        permute([5], 5, "x")
