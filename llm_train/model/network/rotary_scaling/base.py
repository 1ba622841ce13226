"""What changes the frequencies of rotary positions, and the plain ones.

Pair i of d / 2 turns by theta_i radians a position and so repeats after a wavelength of
2 pi / theta_i positions. Within the length of training, pairs with short wavelengths have seen
every angle and pairs with long ones have not: beyond that length those meet angles that are new to
the network.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


def plain_frequencies(base: float, head_dim: int) -> Values:
    """theta_i = base ** (-2 i / d), in radians a position, for i from 0 to d / 2 - 1.

    >>> plain_frequencies(10_000.0, 4).tolist()
    [1.0, 0.01]
    """
    even = np.arange(0, head_dim, 2, dtype=np.float64)
    frequencies: Values = base ** (-even / head_dim)
    return frequencies


class RotaryScaling(ABC):
    """How rotary frequencies are changed. Subclasses are frozen, keyword-only dataclasses."""

    @property
    def attention_factor(self) -> float:
        """What multiplies queries and keys after they are rotated."""
        return 1.0

    @abstractmethod
    def frequencies(self, base: float, head_dim: int) -> Values:
        """(head_dim / 2,) radians that each pair turns a position."""


@dataclass(frozen=True, kw_only=True)
class NoScaling(RotaryScaling):
    """Leaves the frequencies as they are."""

    def frequencies(self, base: float, head_dim: int) -> Values:
        """The plain ones."""
        return plain_frequencies(base, head_dim)
