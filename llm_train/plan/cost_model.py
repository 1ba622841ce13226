"""What one configuration would take: bytes by formula, activations and operations by simulation.

Memory is the strategy's own formula of its state, and the activations of the simulated network on
one device; under tensor parallelism these are divided, but for what is gathered.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch

from llm_train.errors import ConfigError
from llm_train.model.network.base import LanguageModel, Network
from llm_train.model.network.shadow import HasShadow
from llm_train.model.optimizer import AdamW
from llm_train.model.recompute import NoRecompute, Recompute
from llm_train.plan.compiled import saving_of_a_block
from llm_train.plan.scale import Scaled
from llm_train.plan.simulate import Case, Measured
from llm_train.plan.speed import moved_bytes, operations, step_seconds, transfer_seconds
from llm_train.runtime.devices import Device
from llm_train.settings import Settings
from llm_train.trainer.strategy import MeshShape, Strategy
from llm_train.trainer.strategy.cost import StateBytes, Transfer, Weight, Workload

_CUT_ROWS, _CUT_COLUMNS = ("column", "embedding", "head"), ("row",)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One configuration and what it would take.

    Attributes:
        strategy: as it describes itself.
        mesh: how the ranks share data and state.
        recompute: the policy.
        micro_batch: samples of one forward.
        micro_batches: of one optimizer step.
        held: bytes of the state.
        activations: bytes besides it at the worst phase.
        parts: seconds of a step by part.
        transfers: what is sent.
    """

    strategy: str
    mesh: MeshShape
    recompute: str
    micro_batch: int
    micro_batches: int
    held: StateBytes
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
        return math.fsum(self.parts.values())

    def __str__(self) -> str:
        return f"{self.strategy}; {self.recompute}; micro-batch {self.micro_batch}"


class CostModel:
    """What all candidates share: the network, simulated once for each recompute policy.

    Args:
        settings: with devices and nodes as they will be.
        device: of each rank.
    """

    def __init__(self, settings: Settings, device: Device) -> None:
        self.settings, self.device = settings, device
        self.precision = settings.precision
        self.compiled = settings.task.construction.compile != "none"
        self.workload = Workload(
            weights=weights_of(settings.task.network_config),
            optimizer=settings.task.optimizer_config,
            precision=self.precision,
        )
        self._scaled: dict[Recompute, Scaled] = {}

    def candidate(self, strategy: Strategy, policy: Recompute, micro_batch: int) -> Candidate:
        """Everything about one configuration."""
        settings, mesh = self.settings, strategy.mesh_shape(self.settings.world_size)
        network, sequence = settings.task.network_config, settings.batch.sequence
        count = settings.batch.samples // (micro_batch * mesh.data_ranks)
        found = self.simulated(policy, micro_batch)
        plain = self.simulated(NoRecompute(), micro_batch)
        work = self._step(count, micro_batch, recomputed=operations(found) > operations(plain))
        held = strategy.state_bytes(work, mesh)
        transfers = tuple(t for t in strategy.transfers(work, mesh) if t.ranks > 1)
        size = {"sequence": sequence, "micro_batch": micro_batch}
        parts = step_seconds(
            found,
            plain,
            held,
            self.device,
            self.precision,
            moved=moved_bytes(found, plain, network, compiled=self.compiled, **size),
            compiled=self.compiled,
            tensor=mesh.tensor,
            micro_batches=count,
            communication=sum(
                transfer_seconds(t, self.device, settings.devices) for t in transfers
            ),
        )
        kept = besides_state(found) - self.saved_by_compiler(policy, micro_batch)
        return Candidate(
            strategy=strategy.described(mesh),
            mesh=mesh,
            recompute=str(policy),
            micro_batch=micro_batch,
            micro_batches=count,
            held=held,
            activations=kept / mesh.tensor + self._whole_head(mesh.tensor),
            parts=parts,
            transfers=transfers,
        )

    def simulated(self, policy: Recompute, micro_batch: int) -> Measured:
        """A step of two micro-batches on one device, whatever its memory."""
        if policy not in self._scaled:
            self._scaled[policy] = Scaled(self.case(policy))
        return self._scaled[policy].at(micro_batch)

    def saved_by_compiler(self, policy: Recompute, micro_batch: int) -> float:
        """Bytes that blocks do not keep because they are compiled."""
        blocks = policy.untouched(self.workload.layers) if self.compiled else 0
        return blocks * micro_batch * self._saving_of_a_block if blocks else 0.0

    def totals(self, candidate: Candidate) -> dict[str, float]:
        """What people ask: tokens per second, MFU, days, GPU-hours, energy."""
        settings, ranks = self.settings, self.settings.world_size
        tokens, sequence = settings.batch.tokens, settings.batch.sequence
        rate = tokens / candidate.seconds
        useful = rate * settings.task.counts.flops_per_token(sequence, causal=True)
        hours = candidate.seconds * settings.budget.steps(tokens) / 3600
        return {
            "seconds_per_step": candidate.seconds,
            "tokens_per_second": rate,
            "tokens_per_second_per_gpu": rate / ranks,
            "mfu": useful / (ranks * self.device.peak_flops(self.precision)),
            "days": hours / 24,
            "gpu_hours": hours * ranks,
            "energy_mwh": hours * ranks * self.device.watts / 1e6,
        }

    @cached_property
    def _saving_of_a_block(self) -> float:
        return saving_of_a_block(self.case(NoRecompute()))

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

    def _step(self, count: int, micro_batch: int, *, recomputed: bool) -> Workload:
        """The step of a candidate."""
        work = self.workload
        # Tables outside the blocks, of embeddings and of the head, are (V, D).
        width = max((w.extent[-1] for w in work.weights if not w.block), default=0)
        activation = work.product_width * micro_batch * self.settings.batch.sequence * width
        return replace(work, accumulation=count, activation=activation, recomputed=recomputed)

    def _whole_head(self, tensor: int) -> float:
        """Tensor parallelism gathers the head's weight, and sums a whole gradient of it."""
        outside = [w for w in self.workload.weights if not w.block]
        largest = max((w.extent[0] * w.extent[-1] for w in outside), default=0)
        return (2 + 4) * largest * (1 - 1 / tensor)


def besides_state(found: Measured) -> float:
    """Bytes at the worst phase besides parameters, copies, gradients and optimizer state."""
    kept = sum(found[key] for key in ("parameters", "buffers", "copies", "gradients", "optimizer"))
    return max(v for k, v in found.items() if k.startswith("peak ") and k != "peak start") - kept


def weights_of(config: Network) -> tuple[Weight, ...]:
    """All parameters, tied ones once."""
    with torch.device("meta"):
        network = config.build()
    inside = {id(p) for block in network.blocks() for p in block.parameters()}
    copied = {id(module.weight) for module in network.modules() if isinstance(module, HasShadow)}
    cuts = _cuts(network)
    return tuple(
        Weight(
            name=name,
            extent=tuple(parameter.shape),
            block=id(parameter) in inside,
            copied=id(parameter) in copied,
            cut=cuts.get(name, -1),
        )
        for name, parameter in network.named_parameters()
    )


def _cuts(network: LanguageModel) -> dict[str, int]:
    """Parameter name to the dimension that tensor parallelism cuts."""
    try:
        roles = network.tensor_roles()
    except ConfigError:  # a network that cannot be cut is not cut
        return {}
    found: dict[str, int] = {}
    for path, role in roles.items():
        module = network.get_submodule(path)
        for name, parameter in module.named_parameters(recurse=False):
            if role in _CUT_ROWS:
                found[f"{path}.{name}"] = 0
            elif role in _CUT_COLUMNS and parameter.ndim == 2:
                found[f"{path}.{name}"] = 1
    return found
