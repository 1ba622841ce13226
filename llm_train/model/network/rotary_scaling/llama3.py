"""Llama 3.1's scaling: pairs that turn often stay, pairs that turn rarely are slowed."""

from dataclasses import dataclass

import numpy as np

from llm_train.errors import ConfigError, check_at_least
from llm_train.model.network.rotary_scaling.base import RotaryScaling, Values, plain_frequencies


@dataclass(frozen=True, kw_only=True)
class Llama3(RotaryScaling):
    """Scaling by the number of turns within the original length, as Llama 3.1 to 3.3 have it.

    Pairs with more than ``high_turns`` are left alone, those with fewer than ``low_turns`` are
    divided by ``factor``, and between the two the divisor is interpolated.

    Attributes:
        factor: divisor of the slow pairs; 8 in Llama 3.1 and 3.3, 32 in Llama 3.2.
        original_length: positions of the first training; 8192 in all of them.
        low_turns: ``low_freq_factor`` of the published configurations.
        high_turns: ``high_freq_factor`` there.
    """

    factor: float = 32.0
    original_length: int = 8192
    low_turns: float = 1.0
    high_turns: float = 4.0

    def __post_init__(self) -> None:
        check_at_least(self, 1, "factor", "original_length", prefix="rotary_scaling.")
        if not 0.0 <= self.low_turns < self.high_turns:
            raise ConfigError(
                f"rotary_scaling.low_turns={self.low_turns:g} must be at least 0 and below "
                f"high_turns={self.high_turns:g}; Llama 3.1 has 1 and 4"
            )

    def frequencies(self, base: float, head_dim: int) -> Values:
        """A mean of the plain ones and of those divided by the factor, weighted pair by pair."""
        plain = plain_frequencies(base, head_dim)
        turns = self.original_length * plain / (2 * np.pi)
        kept = np.clip((turns - self.low_turns) / (self.high_turns - self.low_turns), 0.0, 1.0)
        mixed: Values = kept * plain + (1 - kept) * plain / self.factor
        return mixed
