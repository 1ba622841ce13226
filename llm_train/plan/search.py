"""The fastest configuration that fits, among strategies, recompute policies and micro-batches.

The global batch does not change, so a micro-batch is one that divides what a rank reads in a
step. Memory is the state by formula and the activations of the simulated network on one device;
under tensor parallelism activations are divided, but for what is gathered.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from llm_train.model.optimizer import AdamW
from llm_train.model.recompute import EveryNth, NoRecompute, Recompute
from llm_train.plan.choices import micro_batches, placings, policies
from llm_train.plan.compiled import saving_of_a_block
from llm_train.plan.devices import Accelerator
from llm_train.plan.formula import State, Weight, state
from llm_train.plan.placing import Placing
from llm_train.plan.scale import Scaled
from llm_train.plan.simulate import Case, Measured
from llm_train.plan.speed import Work, step_seconds, work
from llm_train.plan.traffic import Transfer, traffic
from llm_train.settings import Settings

USABLE = 0.92
"""Of the device's memory: the rest is the CUDA context, NCCL's buffers and what is fragmented."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One configuration and what it would take.

    Attributes:
        placing: the strategy.
        recompute: the policy.
        micro_batch: samples of one forward.
        micro_batches: of one optimizer step.
        held: bytes of the state.
        activations: bytes beside it at the worst moment.
        parts: seconds of a step by part.
        transfers: what is sent.
    """

    placing: Placing
    recompute: str
    micro_batch: int
    micro_batches: int
    held: State
    activations: float
    parts: dict[str, float] = field(compare=False)
    transfers: tuple[Transfer, ...] = field(compare=False)

    @property
    def peak(self) -> float:
        """Most bytes at once."""
        return self.held.total + self.activations

    @property
    def seconds(self) -> float:
        """Of an optimizer step."""
        return sum(self.parts.values())

    def __str__(self) -> str:
        return f"{self.placing}; {self.recompute}; micro-batch {self.micro_batch}"


class Ground:
    """What all candidates share: the network simulated once for each policy.

    Args:
        settings: with devices and nodes as they will be.
        weights: of the network.
        device: of each rank.
        precision: of the Trainer.
    """

    def __init__(
        self, settings: Settings, weights: list[Weight], device: Accelerator, precision: str
    ) -> None:
        self.settings, self.weights = settings, weights
        self.device, self.precision = device, precision
        self._scaled: dict[Recompute, Scaled] = {}
        self._saving: float | None = None

    def activations(self, policy: Recompute, micro_batch: int) -> Measured:
        """A step of two micro-batches on one device, whatever its memory."""
        if policy not in self._scaled:
            self._scaled[policy] = Scaled(self.case(policy))
        return self._scaled[policy].at(micro_batch)

    def saved_by_compiler(self, policy: Recompute, micro_batch: int) -> float:
        """Bytes that blocks do not keep because they are compiled."""
        if self.settings.task.construction.compile == "none":
            return 0.0
        kept = blocks_kept_whole(policy, layers_of(self.weights))
        if kept and self._saving is None:
            self._saving = saving_of_a_block(self.case(NoRecompute()))
        return kept * micro_batch * (self._saving or 0.0)

    def case(self, policy: Recompute) -> Case:
        """One device, two micro-batches; an optimizer that costs no time to simulate."""
        return Case(
            network=self.settings.task.network_config,
            loss=self.settings.task.loss,
            optimizer=AdamW(learning_rate=1e-3),
            recompute=policy,
            precision=self.precision,
            sequence=self.settings.batch.sequence,
            micro_batch=1,
            micro_batches=2,
        )

    def state(self, placing: Placing, accumulation: int) -> State:
        """Bytes by formula."""
        return state(
            self.weights,
            placing,
            self.settings.task.optimizer_config,
            self.precision,
            accumulation=accumulation,
        )

    def candidate(self, placing: Placing, policy: Recompute, micro_batch: int) -> Candidate:
        """Everything about one configuration."""
        settings, layout = self.settings, placing.layout
        count = settings.batch.tokens // (
            settings.batch.sequence * micro_batch * placing.data_ranks
        )
        held = self.state(placing, count)
        found = self.activations(policy, micro_batch)
        plain = self.activations(NoRecompute(), micro_batch)
        each = self._work(found, plain, micro_batch, layout.tensor)
        transfers = self._traffic(placing, count, micro_batch, each)
        talking = sum(t.seconds(self.device, settings.devices) for t in transfers)
        parts = step_seconds(
            each, held, self.device, self.precision, micro_batches=count, communication=talking
        )
        return Candidate(
            placing=placing,
            recompute=name_of(policy),
            micro_batch=micro_batch,
            micro_batches=count,
            held=held,
            activations=(
                (beside_state(found) - self.saved_by_compiler(policy, micro_batch)) / layout.tensor
                + self._whole_head(layout.tensor)
            ),
            parts=parts,
            transfers=tuple(transfers),
        )

    def _work(self, found: Measured, plain: Measured, micro_batch: int, tensor: int) -> Work:
        task = self.settings.task
        return work(
            found,
            plain,
            task.network_config,
            compiled=task.construction.compile != "none",
            sequence=self.settings.batch.sequence,
            micro_batch=micro_batch,
            tensor=tensor,
        )

    def _traffic(
        self, placing: Placing, count: int, micro_batch: int, each: Work
    ) -> list[Transfer]:
        width = 2 if self.precision.startswith("bf16") else 4
        features = max((w.shape[-1] for w in self.weights if not w.block), default=0)
        return traffic(
            self.weights,
            placing,
            self.precision,
            accumulation=count,
            activation=width * micro_batch * self.settings.batch.sequence * features,
            layers=layers_of(self.weights),
            recomputed=1.0 if each.recomputed > 0 else 0.0,
        )

    def _whole_head(self, tensor: int) -> float:
        """Tensor parallelism gathers the head's weight, and sums a whole gradient of it."""
        if tensor == 1:
            return 0.0
        largest = max(w.shape[0] * w.shape[-1] for w in self.weights if not w.block)
        return (2 + 4) * largest * (1 - 1 / tensor)


def layers_of(weights: list[Weight]) -> int:
    """Repeated layers."""
    return len({next(p for p in w.name.split(".") if p.isdigit()) for w in weights if w.block})


def blocks_kept_whole(policy: Recompute, layers: int) -> int:
    """Blocks that no policy changes, which a compiler may still shrink.

    >>> blocks_kept_whole(NoRecompute(), 5), blocks_kept_whole(EveryNth(n=2), 5)
    (5, 2)
    """
    if isinstance(policy, NoRecompute):
        return layers
    return layers - math.ceil(layers / policy.n) if isinstance(policy, EveryNth) else 0


def beside_state(found: Measured) -> float:
    """Bytes at the worst moment beside parameters, copies, gradients and optimizer state."""
    kept = sum(found[key] for key in ("parameters", "buffers", "copies", "gradients", "optimizer"))
    return max(v for k, v in found.items() if k.startswith("peak ") and k != "peak start") - kept


def name_of(policy: Recompute) -> str:
    """A policy in a word, with its number if it has one.

    >>> name_of(EveryNth(n=2)), name_of(NoRecompute())
    ('EveryNth 2', 'NoRecompute')
    """
    number = getattr(policy, "n", None)
    return type(policy).__name__ + ("" if number is None else f" {number}")


def search(
    settings: Settings, ground: Ground, budget: float
) -> tuple[list[Candidate], list[Candidate], dict[str, str]]:
    """All that fit, fastest first; the smallest that do not; and what was refused, with reasons."""
    accepted, refused = placings(settings)
    fitting: list[Candidate] = []
    beyond: list[Candidate] = []
    for placing in accepted:
        sizes = micro_batches(settings, placing)
        if not sizes:
            refused[str(placing)] = (
                f"{settings.batch.samples} samples a step do not divide over "
                f"{placing.data_ranks} data ranks"
            )
        for policy in policies(settings) if sizes else []:
            fit = _fitting(ground, placing, policy, sizes, budget)
            fitting += fit
            if not fit:
                beyond.append(ground.candidate(placing, policy, sizes[0]))
    return sorted(fitting, key=lambda c: (c.seconds, c.peak)), beyond, refused


def _fitting(
    ground: Ground, placing: Placing, policy: Recompute, sizes: list[int], budget: float
) -> list[Candidate]:
    """Candidates that fit; memory grows with the micro-batch, so the first misfit ends it."""
    found: list[Candidate] = []
    for size in sizes:
        candidate = ground.candidate(placing, policy, size)
        if candidate.peak > budget:
            break
        found.append(candidate)
    return found


def why_slower(candidate: Candidate, best: Candidate) -> str:
    """How much slower than the best, and the part of the step that costs most of it."""
    extra = {part: candidate.parts[part] - best.parts[part] for part in best.parts}
    worst = max(extra, key=lambda part: extra[part])
    percent = candidate.seconds / best.seconds - 1
    if percent < 0.001:
        return f"as fast, with {(candidate.peak - best.peak) / 2**30:+.1f} GiB"
    return f"{percent:.1%} slower: {worst} +{extra[worst] * 1e3:,.1f} ms a step"
