"""What a search looks at: strategies, recompute policies and micro-batches.

Only what ``llm-train check`` accepts: each strategy is put into the settings and asked about.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llm_train import check as checks
from llm_train.model.recompute import EveryBlock, EveryNth, NoRecompute, Recompute, Selective
from llm_train.plan.placing import Placing, placing_of
from llm_train.settings import Settings
from llm_train.trainer.strategy import FSDP


def policies(settings: Settings) -> list[Recompute]:
    """Those worth trying, and the configured one."""
    layers = len(settings.context().network.blocks())
    found: list[Recompute] = [NoRecompute(), Selective(), EveryBlock()]
    if layers > 1:
        found.insert(2, EveryNth(n=2))
    own = settings.task.construction.recompute
    return found if own in found else [own, *found]


def placings(settings: Settings) -> tuple[list[Placing], dict[str, str]]:
    """The strategies that ``check`` accepts, and the others with its reason."""
    ranks, devices = settings.world_size, settings.devices
    asked: list[Any] = ["single"] if ranks == 1 else ["ddp", "fsdp", _fsdp(reshard=False)]
    if ranks > devices > 1:
        asked += ["hsdp", _fsdp(reshard=False, replicas=ranks // devices)]
    tensor = 2
    while ranks > 1 and tensor <= devices:
        asked.append(_fsdp(tensor=tensor))
        tensor *= 2
    if ranks > 1:
        asked += ["zero1", "zero2", "zero3"]
    accepted: list[Placing] = []
    refused: dict[str, str] = {}
    for strategy in asked:
        tried = replace(settings, trainer={**settings.trainer, "strategy": strategy})
        problems = checks.problems(tried, running=False)
        # The micro-batch is searched for, so one that does not divide is no reason.
        problems = [line for line in problems if not line.startswith("batch.tokens=")]
        placing = placing_of(tried)
        if problems:
            refused[str(placing)] = problems[0]
        else:
            accepted.append(placing)
    return accepted, refused


def _fsdp(*, reshard: bool = True, replicas: int = 1, tensor: int = 1) -> FSDP:
    return FSDP(reshard_after_forward=reshard, replicas=replicas, tensor=tensor)


def micro_batches(settings: Settings, placing: Placing) -> list[int]:
    """Samples that divide what a data rank reads in a step."""
    share, rest = divmod(settings.batch.samples, placing.data_ranks)
    return [] if rest else [n for n in range(1, share + 1) if share % n == 0]
