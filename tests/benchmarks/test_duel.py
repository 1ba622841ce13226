"""The ratio of rounds must not show what slows both peers alike."""

from __future__ import annotations

import pytest

from benchmarks.duel import Peer, cause, ratio


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


LOG = """Traceback (most recent call last):
  File "loss.py", line 1, in add
torch._dynamo.exc.Unsupported: out= of an unknown kind
  Explanation: what it is

from user code:
   File "loss.py", line 1, in add

Set TORCHDYNAMO_VERBOSE=1 for the internal stack trace
"""


def test_the_cause_of_a_death_is_the_exception_and_not_the_advice_that_follows_it() -> None:
    assert cause(f"a warning\n{LOG}") == "torch._dynamo.exc.Unsupported: out= of an unknown kind"
    assert cause("a warning\nkilled\n") == "killed"
    assert cause("") == ""
