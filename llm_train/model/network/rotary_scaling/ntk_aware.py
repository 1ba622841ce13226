"""NTK-aware scaling: a larger base, so that fast pairs hardly change and slow ones do.

The last pair turns by base ** (-(d - 2) / d). With the base multiplied by factor ** (d / (d - 2))
that is divided by exactly ``factor``, as by position interpolation, and the first pair stays at 1.
"""

from dataclasses import dataclass

from llm_train.errors import check_at_least
from llm_train.model.network.rotary_scaling.base import RotaryScaling, Values, plain_frequencies


@dataclass(frozen=True, kw_only=True)
class NTKAware(RotaryScaling):
    """A base larger by ``factor ** (d / (d - 2))`` (bloc97, 2023; arXiv:2309.00071, section 3.1).

    Attributes:
        factor: the longer length over that of training.
    """

    factor: float

    def __post_init__(self) -> None:
        check_at_least(self, 1, "factor", prefix="rotary_scaling.")

    def frequencies(self, base: float, head_dim: int) -> Values:
        """Those of the larger base; a head of two features has one pair, which stays."""
        exponent = head_dim / (head_dim - 2) if head_dim > 2 else 0.0
        return plain_frequencies(base * self.factor**exponent, head_dim)
