"""What is compared: one configuration, changed in nothing but strategy and number of ranks.

Every strategy that is loaded says which of its variants are worth comparing, a user's own included.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from llm_train.discovery import concrete
from llm_train.errors import ConfigError
from llm_train.trainer.strategy import Strategy
from llm_train.units import Batch


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One run.

    Attributes:
        name: the strategy, as the table shows it.
        ranks: processes.
        strategy: value of trainer.strategy: a word, or class_path and init_args.
        overrides: further settings by dotted key.
        refusal: why it makes no sense with so many ranks; "" if it does.
        alone: one process without a launcher.
        same: whether it computes what one process computes, so that its distance can be judged.
    """

    name: str
    ranks: int = 1
    strategy: str | Mapping[str, object]
    overrides: Mapping[str, object] = field(default_factory=dict)
    refusal: str = ""
    alone: bool = False
    same: bool = True

    @property
    def folder(self) -> str:
        """Name of its directory."""
        return f"{self.name.replace(', ', '-').replace(' ', '-')}-{self.ranks}"


REFERENCE = Variant(name="single", strategy="single", alone=True)
"""What the others are compared with."""

EXACT = replace(
    REFERENCE,
    name="single, in fp32",
    overrides={
        "trainer.precision": "32-true",
        "device.float32_matmul": "ieee",
        "model.float8": "none",
        "model.attention": "auto",
    },
)
"""One process in fp32, whose rounding is nothing against that of a narrower precision."""


def variants(names: Sequence[str], ranks: Sequence[int]) -> list[Variant]:
    """Every named variant on every number of ranks, but for the reference; all without names.

    Raises:
        ConfigError: a name or a number makes no sense.
    """
    for count in ranks:
        if count < 1:
            raise ConfigError(f"--ranks={count} must be at least 1")
    found = {count: _known(count) for count in dict.fromkeys(ranks)}
    known = [REFERENCE.name, *dict.fromkeys(name for by_name in found.values() for name in by_name)]
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
            raise ConfigError(f"--strategies={name} is not a strategy that is compared; {hint}")
    wanted = list(dict.fromkeys(names or known))
    return [by_name[name] for by_name in found.values() for name in wanted if name in by_name]


def _known(ranks: int) -> dict[str, Variant]:
    """What all strategies offer for comparison, by name."""
    return {
        way.name: Variant(
            name=way.name,
            ranks=ranks,
            strategy={
                "class_path": f"{kind.__module__}.{kind.__qualname__}",
                "init_args": dict(way.arguments),
            },
            refusal="" if ranks >= way.least_ranks else f"needs at least {way.least_ranks} ranks",
            same=way.same,
        )
        for kind in concrete(Strategy)  # type: ignore[type-abstract]
        for way in kind.compared(ranks)
    }


def rounding(batch: Batch) -> Variant:
    """One process again, which adds up the same samples in another order.

    Raises:
        ConfigError: a step is one sample, and there is one order.
    """
    size = batch.per_device
    smaller = next((size // n for n in range(2, size + 1) if size % n == 0), 0)
    larger = next((n for n in range(2, batch.samples + 1) if batch.samples % n == 0), 0)
    other = smaller or larger
    if not other:
        raise ConfigError(
            f"batch.tokens={batch.tokens} is one sample of {batch.sequence} a step, so nothing can "
            f"be shared among ranks; set it to at least {2 * batch.sequence}"
        )
    overrides = {"batch.per_device": other}
    return replace(REFERENCE, name="single, rounded otherwise", overrides=overrides)
