"""A trial is a test with a seed: the same seed draws the same faults, whenever it runs.

The default suite runs the first trials of most rows and ``make chaos`` all of them, or the third
eighth with ``SHARD=3``. ``make chaos TRIAL=kill-ddp-17`` repeats a single one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def trials(row: str, number: int, *values: Any, short: int = 0) -> list[Any]:
    """The parameters of a row's tests: ``values``, and then the seed.

    Args:
        row: what the names of its trials begin with.
        number: how many trials it has in all.
        *values: what all of them share.
        short: how many of them the default suite runs.
    """
    marks = [[pytest.mark.chaos, *[pytest.mark.faults] * (s >= short)] for s in range(number)]
    return [pytest.param(*values, s, id=f"{row}-{s}", marks=marks[s]) for s in range(number)]


def first(short: int, values: Iterable[Any]) -> list[Any]:
    """Parameters of which the default suite takes the first ones, where no seed is needed."""
    every = list(values)
    few, many = every[:short], every[short:]
    return [*few, *(pytest.param(value, marks=pytest.mark.faults) for value in many)]
