"""Durations in steps or tokens, and the arithmetic of the global batch.

The machine measures a run in optimizer steps, and people measure it in tokens. A ``Duration``
therefore keeps the unit in which it was written until the batch size is known. ``Batch`` guarantees
that the number of tokens per optimizer step does not depend on the number of devices.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from llm_train.errors import ConfigError, check_at_least

DURATION = re.compile(
    r"^\s*([0-9][0-9_]*(?:\.[0-9]+)?(?:[eE][+]?[0-9]+)?)\s*([kKMBGT]?)\s*(steps?|tokens?)\s*$"
)
_SUFFIX = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12}


class Duration:
    """A length of training: ``2000 steps`` or ``1.5B tokens``.

    It is not a dataclass, because a parser would read a dataclass as a group of keys, and a
    duration is one scalar.

    >>> Duration.parse("1.5M tokens")
    Duration(count=1500000, unit='tokens')
    >>> Duration.parse("1.5M tokens").steps(tokens_per_step=1000)
    1500
    >>> str(Duration.parse("200 steps"))
    '200 steps'
    """

    __slots__ = ("count", "unit")

    def __init__(self, count: int, unit: Literal["steps", "tokens"]) -> None:
        self.count = count
        self.unit = unit

    @classmethod
    def parse(cls, text: str) -> Duration:
        """Reads ``NUMBER[k|M|B|T] steps|tokens``.

        Raises:
            ConfigError: if the text has no unit, is not a number, or is not a whole count.
        """
        match = DURATION.match(text) if isinstance(text, str) else None
        if match is None:
            raise ConfigError(
                f"{text!r} is not a duration; write a count and its unit, as in '2000 steps' or "
                "'1.5B tokens'"
            )
        count = Decimal(match[1].replace("_", "")) * _SUFFIX[match[2]]
        if count != int(count):
            raise ConfigError(f"{text!r} is not a whole number of {match[3]}")
        return cls(int(count), "steps" if match[3].startswith("step") else "tokens")

    def steps(self, tokens_per_step: int) -> int:
        """Returns the smallest whole number of optimizer steps that covers the duration."""
        return self.count if self.unit == "steps" else math.ceil(self.count / tokens_per_step)

    def __str__(self) -> str:
        return f"{self.count} {self.unit}"

    def __repr__(self) -> str:
        return f"Duration(count={self.count}, unit={self.unit!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Duration) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """The rule by which the peak learning rate follows the size of the global batch.

    With ``k = batch.tokens / reference_tokens``, the configured learning rate is multiplied by 1
    (none), ``k`` (linear: Goyal et al., arXiv:1706.02677) or ``sqrt(k)`` (sqrt, from Adam's noise
    scale: Malladi et al., arXiv:2205.10287).

    Args:
        rule: none, linear or sqrt.
        reference_tokens: tokens per step for which the learning rate was chosen; 0 with rule none.
    """

    rule: Literal["none", "linear", "sqrt"] = "none"
    reference_tokens: int = 0

    def __post_init__(self) -> None:
        if self.rule == "none" and self.reference_tokens != 0:
            raise ConfigError(
                f"batch.scaling.reference_tokens={self.reference_tokens} has no effect with "
                "rule=none; remove it or set batch.scaling.rule to linear or sqrt"
            )
        if self.rule != "none" and self.reference_tokens <= 0:
            raise ConfigError(
                f"batch.scaling.rule={self.rule} needs batch.scaling.reference_tokens, the tokens "
                "per step for which the learning rate was chosen"
            )

    def factor(self, tokens: int) -> float:
        """Returns the factor on the configured learning rate for a global batch of ``tokens``."""
        if self.rule == "none":
            return 1.0
        ratio = tokens / self.reference_tokens
        return ratio if self.rule == "linear" else math.sqrt(ratio)


_NO_TOKENS = Duration(0, "tokens")
_POWERS = [1 << k for k in range(1, 64)]


@dataclass(frozen=True, kw_only=True)
class Ramp:
    """A global batch that begins small and doubles until it is ``batch.tokens``.

    Early gradients are large against their noise, so that a small batch learns as much from fewer
    tokens (McCandlish et al., arXiv:1812.06162, section 2.3). A stage begins where its own batch
    divides the tokens trained on: at the next such step at or after a multiple of doubles_every.

    Args:
        tokens: tokens of the first steps, batch.tokens over a power of two; 0 is no ramp.
        doubles_every: tokens of training between two doublings.
    """

    tokens: int = 0
    doubles_every: Duration = _NO_TOKENS

    def __post_init__(self) -> None:
        every = self.doubles_every
        if bool(self.tokens) != bool(every.count) or every.unit != "tokens":
            raise ConfigError(
                f"batch.ramp.tokens={self.tokens} with batch.ramp.doubles_every={every}: a ramp "
                "needs both, the second in tokens, as in '50M tokens'; leave out both for none"
            )


@dataclass(frozen=True, kw_only=True)
class SequenceRamp:
    """Windows that are cut into short pieces, which double until they are whole.

    A step has the same tokens all along, in the same order: a piece is a window of its own, whose
    positions begin at 0 and see nothing of the piece before (Li et al., arXiv:2108.06084, shorten
    sequences as well, and drop the rest of each).

    Args:
        sequence: positions per piece in the first steps, batch.sequence over a power of two; 0 is
            no ramp.
        doubles_every: tokens of training between two doublings.
    """

    sequence: int = 0
    doubles_every: Duration = _NO_TOKENS

    def __post_init__(self) -> None:
        every = self.doubles_every
        if bool(self.sequence) != bool(every.count) or every.unit != "tokens":
            raise ConfigError(
                f"batch.sequence_ramp.sequence={self.sequence} with batch.sequence_ramp."
                f"doubles_every={every}: a ramp needs both, the second in tokens, as in "
                "'50M tokens'; leave out both for none"
            )

    def positions(self, whole: int, tokens: int) -> int:
        """Positions per piece of a window of ``whole`` when ``tokens`` have been trained on.

        >>> ramp = SequenceRamp(sequence=128, doubles_every=Duration(1000, "tokens"))
        >>> [ramp.positions(512, tokens) for tokens in (0, 999, 1000, 2000, 10**12)]
        [128, 128, 256, 512, 512]
        """
        if not self.sequence:
            return whole
        doublings = (whole // self.sequence).bit_length() - 1
        return self.sequence << min(doublings, tokens // self.doubles_every.count)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The global batch: the data of one optimizer step, on any number of devices.

    Args:
        tokens: target tokens per optimizer step over all devices.
        sequence: positions per sample.
        per_device: samples in one forward and backward pass on one device.
        scaling: rule that adapts the learning rate to ``tokens``.
        ramp: smaller batches before, each with its accumulation and scaled learning rate.
        sequence_ramp: shorter sequences before, as many more of them.
        on_out_of_memory: raise ends a run that finds a device too small for ``per_device``, and
            says what to set; halve takes half of it at the next start and from then on, by a file
            in the run directory, and a single process starts again by itself.
    """

    tokens: int
    sequence: int
    per_device: int
    scaling: Scaling = Scaling()
    ramp: Ramp = Ramp()
    sequence_ramp: SequenceRamp = SequenceRamp()
    on_out_of_memory: Literal["raise", "halve"] = "raise"

    def __post_init__(self) -> None:
        check_at_least(self, 1, "tokens", "sequence", "per_device", prefix="batch.")
        first = self.ramp.tokens
        if first and (first < 0 or first not in [self.tokens >> k for k in range(1, 64)]):
            raise ConfigError(
                f"batch.ramp.tokens={first} does not become batch.tokens={self.tokens} by "
                "doubling; divide the latter by 2, 4, 8 or another power of two"
            )
        first = self.sequence_ramp.sequence
        if first and first not in [self.sequence // k for k in _POWERS if not self.sequence % k]:
            raise ConfigError(
                f"batch.sequence_ramp.sequence={first} does not become batch.sequence="
                f"{self.sequence} by doubling; divide the latter by 2, 4, 8 or another power of two"
            )

    def accumulation(self, world_size: int) -> int:
        """Returns the micro-batches per optimizer step on each of ``world_size`` ranks.

        Raises:
            ConfigError: if ``tokens`` is not a multiple of what the ranks process at once; it names
                the nearest values that are.

        >>> Batch(tokens=524288, sequence=1024, per_device=16).accumulation(8)
        4
        """
        unit = world_size * self.per_device * self.sequence
        smallest = self.ramp.tokens or self.tokens
        if smallest % unit:
            key = "batch.ramp.tokens" if self.ramp.tokens else "batch.tokens"
            windows, rest = divmod(smallest, world_size * self.sequence)
            fewer = "" if rest else f", or batch.per_device={math.gcd(windows, self.per_device)}"
            raise ConfigError(
                f"{key}={smallest} is not a multiple of {world_size} ranks x "
                f"{self.per_device} samples x {self.sequence} positions = {unit}; "
                f"nearest: {nearest(smallest, unit)}{fewer}"
            )
        return self.tokens // unit

    @property
    def samples(self) -> int:
        """Samples per optimizer step, after the ramp if there is one."""
        return self.tokens // self.sequence

    def stages(self) -> Iterator[tuple[int, int | None]]:
        """Samples of a step, and the count of samples at which that ends; None: never.

        >>> ramp = Ramp(tokens=100, doubles_every=Duration(500, "tokens"))
        >>> list(Batch(tokens=400, sequence=10, per_device=1, ramp=ramp).stages())
        [(10, 60), (20, 120), (40, None)]
        """
        size, every, doublings = self.ramp.tokens // self.sequence, self.ramp.doubles_every, 0
        while size and size < self.samples:
            doublings += 1
            until = math.ceil(every.count * doublings / self.sequence)
            yield size, math.ceil(until / (2 * size)) * 2 * size
            size *= 2
        yield self.samples, None

    def longest_doubling(self, budget: int) -> int:
        """The largest ``doubles_every`` whose ramp ends within so many tokens; 0: there is none.

        >>> ramp = Ramp(tokens=100, doubles_every=Duration(500, "tokens"))
        >>> Batch(tokens=400, sequence=10, per_device=1, ramp=ramp).longest_doubling(1300)
        600
        """
        doublings = (self.tokens // self.ramp.tokens).bit_length() - 1
        before = (math.ceil(budget / self.sequence) - 1) // self.samples * self.samples
        return before * self.sequence // doublings


def nearest(value: int, unit: int) -> str:
    """The multiples of ``unit`` next to ``value``, which is none, in words.

    >>> nearest(10, 4)
    '8 or 12'
    """
    below = value // unit * unit
    return f"{below} or {below + unit}" if below else f"{unit}"
