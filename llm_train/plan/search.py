"""The fastest configuration that fits, in a space that the parts themselves span.

Every strategy and every recompute policy that exists offers what is worth trying; the configured
ones are tried as they are. Only what ``llm-train check`` accepts is looked at. The global batch
does not change, so a micro-batch is one that divides what a rank reads in a step.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import TypeVar

from llm_train import check as checks
from llm_train.discovery import concrete
from llm_train.errors import ConfigError
from llm_train.model.recompute import Recompute
from llm_train.plan.cost_model import Candidate, CostModel
from llm_train.settings import Settings
from llm_train.trainer.strategy import Strategy

USABLE = 0.92
"""Of the device's memory: the rest is the CUDA context, NCCL's buffers and what is fragmented."""

P = TypeVar("P")


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a search saw.

    Attributes:
        fitting: all that fit, fastest first.
        beyond: of each strategy and policy of which nothing fits, the smallest.
        refused: what cannot run, with reasons.
    """

    fitting: list[Candidate]
    beyond: list[Candidate]
    refused: dict[str, str]


def search(model: CostModel, budget: float) -> Findings:
    """Looks through the whole space.

    Args:
        model: says what a configuration takes.
        budget: bytes that a rank may use.
    """
    settings = model.settings
    accepted, refused = strategies_to_try(settings)
    found = Findings(fitting=[], beyond=[], refused=refused)
    for name, strategy in accepted.items():
        ranks = strategy.mesh_shape(settings.world_size).data_ranks
        sizes = micro_batches(settings.batch.samples, ranks)
        if not sizes:
            samples = settings.batch.samples
            refused[name] = f"{samples} samples a step do not divide over {ranks} data ranks"
        for policy in policies_to_try(settings, model.workload.layers) if sizes else []:
            tried = (model.candidate(strategy, policy, size) for size in sizes)
            # Memory grows with the micro-batch.
            fitting = list(takewhile(lambda candidate: candidate.peak <= budget, tried))
            found.fitting.extend(fitting)
            if not fitting:
                found.beyond.append(model.candidate(strategy, policy, sizes[0]))
    found.fitting.sort(key=lambda c: (c.seconds, c.peak))
    return found


def strategies_to_try(settings: Settings) -> tuple[dict[str, Strategy], dict[str, str]]:
    """The strategies that ``check`` accepts, and the others with its reason."""
    accepted: dict[str, Strategy] = {}
    refused: dict[str, str] = {}
    kinds = concrete(Strategy)  # type: ignore[type-abstract]
    offered = _offers(kinds, lambda kind: kind.candidates(settings.world))
    for strategy in [settings.strategy, *offered]:
        tried = replace(settings, trainer_args={**settings.trainer_args, "strategy": strategy})
        try:
            name = strategy.described(tried.mesh_shape)
        except ConfigError as error:
            refused[type(strategy).__name__] = str(error)
            continue
        if name in accepted or name in refused:
            continue
        problems = checks.problems(tried, running=False)
        # The micro-batch is searched for, so one that does not divide is no reason.
        problems = [line for line in problems if not line.startswith("batch.tokens=")]
        if problems:
            refused[name] = problems[0]
        else:
            accepted[name] = strategy
    return accepted, refused


def policies_to_try(settings: Settings, layers: int) -> list[Recompute]:
    """Those worth trying on so many blocks, and the configured one."""
    kinds = concrete(Recompute)  # type: ignore[type-abstract]
    offered = _offers(kinds, lambda kind: kind.candidates(layers))
    return list(dict.fromkeys([settings.task.construction.recompute, *offered]))


def _offers(kinds: Iterable[type[P]], offer: Callable[[type[P]], Iterator[P]]) -> list[P]:
    """What all classes offer; one that needs arguments and names none itself offers nothing."""
    found: list[P] = []
    for kind in kinds:
        with contextlib.suppress(TypeError):
            found += offer(kind)
    return found


def micro_batches(samples: int, data_ranks: int) -> list[int]:
    """Sizes that divide what a data rank reads in a step of so many samples.

    >>> micro_batches(24, 4), micro_batches(24, 5)
    ([1, 2, 3, 6], [])
    """
    share, rest = divmod(samples, data_ranks)
    return [] if rest else [n for n in range(1, share + 1) if share % n == 0]
