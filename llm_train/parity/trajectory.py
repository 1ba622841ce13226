"""What a run left behind, as numbers that can be compared."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from llm_train.checkpoint.compatibility import load_weights
from llm_train.checkpoint.store import CheckpointStore
from llm_train.settings import Settings
from llm_train.trainer.callbacks import collectives
from llm_train.trainer.logger.records import merge, read_lines

Weights = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """One run, step by step.

    Attributes:
        loss: nats per token of each step.
        norm: global gradient norm of each step, before clipping.
        rate: learning rate of each step.
        tokens: target tokens after each step.
        peak_gib: peak memory of rank 0 before collectives were counted.
        collectives: calls per optimizer step, by kind.
        weights: at the end; None where they are not known.
    """

    loss: Sequence[float]
    norm: Sequence[float]
    rate: Sequence[float]
    tokens: Sequence[float]
    peak_gib: float
    collectives: Mapping[str, float]
    weights: Weights | None = None


def read(run_dir: Path) -> Trajectory:
    """The trajectory of the run in ``run_dir``."""
    lines = read_lines(run_dir / "metrics.jsonl")
    records = [record for record in merge(lines) if "train/loss" in record]
    before = records[-1 - collectives.STEPS]  # counting in the last steps takes memory itself
    return Trajectory(
        loss=[record["train/loss"] for record in records],
        norm=[record["grad/norm"] for record in records],
        rate=[record["optimizer/lr"] for record in records],
        tokens=[record["progress/tokens"] for record in records],
        peak_gib=before["memory/peak_gib"],
        collectives=counted(run_dir),
    )


def counted(run_dir: Path) -> Mapping[str, float]:
    """Collectives per optimizer step by kind, of a run with ``--count-collectives``."""
    lines = read_lines(run_dir / "metrics.jsonl")
    events = [line for line in lines if line.get("event") == collectives.EVENT]
    counts: Mapping[str, float] = events[-1]["per_step"]
    return counts


def weights(settings: Settings, run_dir: Path) -> Weights:
    """The last checkpoint's parameters in this process, by name, whatever strategy wrote them."""
    path = CheckpointStore(run_dir / "checkpoints").newest().path
    assert path is not None, "a run saves at its end"
    network = settings.task.network_config.build()
    load_weights(path, network)
    return {name: parameter.detach() for name, parameter in network.named_parameters()}


def distance(found: Weights, expected: Weights) -> float:
    """Norm of the difference of all weights over the norm of those expected.

    >>> from torch import tensor
    >>> distance({"w": tensor([3.0, 4.5])}, {"w": tensor([3.0, 4.0])})
    0.1
    """
    apart = sum(float((found[n].double() - w.double()).square().sum()) for n, w in expected.items())
    size = sum(float(w.double().square().sum()) for w in expected.values())
    return math.sqrt(apart / size)


def largest_difference(found: Sequence[float], expected: Sequence[float]) -> float:
    """Largest relative difference of a step; infinite where steps are missing or not finite.

    >>> largest_difference([1.0, 2.5], [1.0, 2.0]), largest_difference([1.0], [1.0, 2.0])
    (0.25, inf)
    """
    if len(found) != len(expected):
        return math.inf
    differences = [abs(f - e) / abs(e) for f, e in zip(found, expected, strict=True)]
    return max(d if math.isfinite(d) else math.inf for d in differences)
