"""What is compared: one configuration, changed in nothing but strategy and number of ranks."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llm_train.errors import ConfigError
from llm_train.units import Batch

REFERENCE = "single"
ROUNDING = "single, rounded otherwise"
EXACT = "single, in fp32"


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One run.

    Attributes:
        name: the strategy, as the table shows it.
        ranks: processes.
        strategy: value of trainer.strategy: a word, or class_path and init_args.
        overrides: further settings by dotted key.
        refusal: why it makes no sense with so many ranks; "" if it does.
    """

    name: str
    ranks: int = 1
    strategy: Any
    overrides: Mapping[str, Any] = field(default_factory=dict)
    refusal: str = ""

    @property
    def folder(self) -> str:
        """Name of its directory."""
        return f"{self.name.replace(', ', '-').replace(' ', '-')}-{self.ranks}"


def _fsdp(**settings: Any) -> dict[str, Any]:
    return {"class_path": "FSDP", "init_args": settings}


# name -> least number of ranks, and the strategy; None: tensor parallelism over all ranks
_KNOWN: Mapping[str, tuple[int, Any]] = {
    REFERENCE: (1, "single"),
    "ddp": (1, "ddp"),
    "fsdp": (1, "fsdp"),
    "fsdp-no-reshard": (1, _fsdp(reshard_after_forward=False)),
    "hsdp": (4, _fsdp(replicas=2)),
    "tp": (2, None),
    "fsdp-tp": (4, _fsdp(tensor=2)),
    "zero1": (1, "zero1"),
    "zero2": (1, "zero2"),
    "zero3": (1, "zero3"),
}
STRATEGIES = tuple(_KNOWN)


def variants(names: Sequence[str], ranks: Sequence[int]) -> list[Variant]:
    """Every named strategy on every number of ranks, but for the reference.

    Raises:
        ConfigError: a name or a number makes no sense.
    """
    for name in names:
        if name not in _KNOWN:
            close = difflib.get_close_matches(name, STRATEGIES, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(STRATEGIES)}"
            raise ConfigError(f"--strategies={name} is not a strategy that is compared; {hint}")
    for count in ranks:
        if count < 1:
            raise ConfigError(f"--ranks={count} must be at least 1")
    return [
        _variant(name, count)
        for count in dict.fromkeys(ranks)
        for name in dict.fromkeys(names)
        if name != REFERENCE
    ]


def _variant(name: str, ranks: int) -> Variant:
    least, strategy = _KNOWN[name]
    if strategy is None:
        strategy = _fsdp(tensor=ranks)
    refusal = "" if ranks >= least else f"needs at least {least} ranks"
    return Variant(name=name, ranks=ranks, strategy=strategy, refusal=refusal)


def reference() -> Variant:
    """What the others are compared with."""
    return Variant(name=REFERENCE, strategy="single")


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
    return Variant(name=ROUNDING, strategy="single", overrides={"batch.per_device": other})


def exact() -> Variant:
    """One process in fp32, whose rounding is nothing beside that of a narrower precision."""
    overrides = {
        "trainer.precision": "32-true",
        "model.float8": "none",
        "model.attention": "auto",
    }
    return Variant(name=EXACT, strategy="single", overrides=overrides)
