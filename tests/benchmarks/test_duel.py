"""The ratio of rounds must not show what slows both peers alike."""

from __future__ import annotations

import pytest

from benchmarks.duel import Peer, ratio


def peer(*milliseconds: float) -> Peer:
    return Peer(name="", module="", job=None, milliseconds=list(milliseconds))


def test_a_common_slowdown_cancels() -> None:
    found, spread = ratio(peer(9.0, 18.0, 36.0, 9.0), peer(10.0, 20.0, 40.0, 10.0))
    assert found == pytest.approx(0.9)
    assert spread == pytest.approx(0.0)


def test_spread_is_half_the_distance_between_the_quartiles() -> None:
    found, spread = ratio(peer(1.0, 2.0, 3.0, 4.0, 5.0), peer(*[1.0] * 5))
    assert found == 3.0
    assert spread == pytest.approx((4.5 - 1.5) / 2)
