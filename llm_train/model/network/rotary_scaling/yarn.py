"""YaRN: interpolation pair by pair, and a temperature of attention."""

import math
from dataclasses import dataclass

import numpy as np

from llm_train.errors import ConfigError, check_at_least
from llm_train.model.network.rotary_scaling.base import RotaryScaling, Values, plain_frequencies


@dataclass(frozen=True, kw_only=True)
class YaRN(RotaryScaling):
    """NTK by parts, with queries and keys a little longer (Peng et al., arXiv:2309.00071).

    Pairs that turn more than ``fast_turns`` times within the original length are left alone, those
    that turn less than ``slow_turns`` times are divided by ``factor``; between the two the weight
    is linear in the index of the pair, as in the authors' code (and not in the turns, as in their
    eq. 18). Scores are multiplied by ``(0.1 ln(factor) + 1) ** 2``, which is an attention
    temperature below 1 (eq. 22).

    Attributes:
        factor: the longer length over the original one.
        original_length: positions of the first training.
        fast_turns: ``beta_fast`` of published configurations.
        slow_turns: ``beta_slow`` there.
    """

    factor: float
    original_length: int
    fast_turns: float = 32.0
    slow_turns: float = 1.0

    def __post_init__(self) -> None:
        check_at_least(self, 1, "factor", "original_length", prefix="rotary_scaling.")
        if not 0.0 < self.slow_turns < self.fast_turns:
            raise ConfigError(
                f"rotary_scaling.slow_turns={self.slow_turns:g} must be above 0 and below "
                f"fast_turns={self.fast_turns:g}; the paper has 1 and 32"
            )

    @property
    def attention_factor(self) -> float:
        """0.1 ln(factor) + 1, for queries and keys each."""
        return 0.1 * math.log(self.factor) + 1.0

    def frequencies(self, base: float, head_dim: int) -> Values:
        """A mean of the plain ones and of those divided by the factor, weighted pair by pair."""
        plain = plain_frequencies(base, head_dim)
        first = max(math.floor(self._pair(self.fast_turns, base, head_dim)), 0)
        last = min(math.ceil(self._pair(self.slow_turns, base, head_dim)), head_dim - 1)
        ramp = (np.arange(head_dim // 2) - first) / max(last - first, 0.001)
        divided = np.clip(ramp, 0.0, 1.0)
        mixed: Values = divided * plain / self.factor + (1 - divided) * plain
        return mixed

    def _pair(self, turns: float, base: float, head_dim: int) -> float:
        """Index, with a fraction, of the pair that turns this often within the original length."""
        wavelength = self.original_length / (2 * math.pi * turns)
        return head_dim * math.log(wavelength) / (2 * math.log(base))
