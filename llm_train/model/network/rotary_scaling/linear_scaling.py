"""Position interpolation: every position is divided by the same factor."""

from dataclasses import dataclass

from llm_train.errors import check_at_least
from llm_train.model.network.rotary_scaling.base import RotaryScaling, Values, plain_frequencies


@dataclass(frozen=True, kw_only=True)
class LinearScaling(RotaryScaling):
    """``theta_i / factor`` (Chen et al., arXiv:2306.15595): all pairs alike, also the fastest.

    Attributes:
        factor: the longer length over that of training.
    """

    factor: float

    def __post_init__(self) -> None:
        check_at_least(self, 1, "factor", prefix="rotary_scaling.")

    def frequencies(self, base: float, head_dim: int) -> Values:
        """Slower by the factor."""
        return plain_frequencies(base, head_dim) / self.factor
