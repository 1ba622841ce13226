"""Rules of canonical reduction: what would make ranks differ bit by bit is refused.

A run that asks for equal bits and cannot have them would be worse than one that never asked, so
everything that is known to break them, or was never shown not to, is named here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from llm_train.check.table import derive, on_meta, stand_ins
from llm_train.check.trainer import precision_of
from llm_train.settings import Settings
from llm_train.trainer.strategy import FSDP, Strategy

_KEY = "reduction: canonical"
# Arguments of FSDP with sums, or places of sums, of their own, and what they must be.
_PLAIN: dict[str, Any] = {"replicas": 1, "tensor": 1, "offload": False}


def canonical(settings: Settings) -> Iterator[str]:
    """What can be known from keys alone."""
    strategy = _strategy(settings)
    if strategy is None:
        return
    precision = precision_of(settings)
    if precision == "bf16-true":
        yield (
            f"trainer.precision={precision} with {_KEY} sums gradients in bf16, where one process "
            "and several round differently; write 32-true or bf16-mixed"
        )
    if settings.task.construction.float8 != "none":
        yield (
            f"model.float8={settings.task.construction.float8} with {_KEY}: FP8 scales were not "
            "shown to be the same on any number of ranks; set model.float8=none"
        )
    for name, plain in _PLAIN.items() if isinstance(strategy, FSDP) else ():
        value = getattr(strategy, name)
        if value != plain:
            yield (
                f"trainer.strategy.init_args.{name}={value} with {_KEY} is not supported; leave "
                f"{name} out, or set reduction: fast"
            )
    yield from _divisor(settings)


def _divisor(settings: Settings) -> Iterator[str]:
    """1 / W / A, rounded twice, is 1 / (W A) where W or A is a power of two."""
    derived = derive(settings)
    ranks, accumulation = derived.data_ranks, derived.accumulation
    if ranks & (ranks - 1) and accumulation & (accumulation - 1):
        yield (
            f"{_KEY} with {ranks} ranks x {accumulation} micro-batches: one of the two must be a "
            "power of two, or dividing by both may round differently than dividing by their "
            "product; change the number of ranks, batch.tokens or batch.per_device"
        )


def parts(settings: Settings) -> Iterator[str]:
    """What shows only when network and optimizer are built, without memory."""
    strategy = _strategy(settings)
    if strategy is None:
        return
    if any(isinstance(m, nn.Dropout) and m.p > 0 for m in on_meta(settings).modules()):
        yield (
            f"{_KEY} with dropout: every rank draws masks of its own, so results depend on the "
            "number of ranks; set model.network.init_args.dropout=0"
        )
    optimizer: Any = settings.task.optimizer_config
    groups = optimizer.build(stand_ins(settings)).param_groups
    if isinstance(strategy, FSDP) and any(group.get("fused") for group in groups):
        yield (
            f"{_KEY} under FSDP with a fused optimizer: its kernel rounds the last elements of a "
            "tensor differently, and every shard has last elements; set "
            "model.optimizer.init_args.fused=off, here and in the runs to compare with"
        )


def _strategy(settings: Settings) -> Strategy | None:
    """The strategy, if it was asked for canonical order."""
    strategy = settings.strategy
    return strategy if strategy.reduction == "canonical" else None
