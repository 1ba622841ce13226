"""What one configuration would take: bytes by formula, activations and operations by simulation.

Memory is the strategy's own formula of its state, and the activations of the simulated network on
one device; under tensor parallelism these are divided, but for what is gathered.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cache, cached_property

import torch

from llm_train.errors import ConfigError
from llm_train.model.network.base import LanguageModel, Network
from llm_train.model.network.shadow import shadowed
from llm_train.model.optimizer import AdamW
from llm_train.model.recompute import NoRecompute, Recompute
from llm_train.plan import speed
from llm_train.plan.compiled import saving_of_a_block
from llm_train.plan.operators import Measured
from llm_train.plan.simulate import Case, Scaled, peak
from llm_train.runtime.devices import Device
from llm_train.settings import Settings
from llm_train.trainer.strategy import MeshShape, Strategy
from llm_train.trainer.strategy.cost import StateBytes, Transfer, Weight, Workload

_CUT = {"column": 0, "embedding": 0, "head": 0, "row": 1}  # role of a module to its dimension
_STATE = ("parameters", "buffers", "copies", "gradients", "optimizer")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One configuration and what it would take.

    Attributes:
        strategy: as it describes itself.
        mesh: how the ranks share data and state.
        recompute: the policy.
        micro_batch: samples of one forward.
        micro_batches: of one optimizer step.
        held: bytes of the state; what the optimizer keeps is 0 where that is unknown.
        unknown: whether it is.
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
    unknown: bool = False

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
        self._scaled = cache(lambda policy: Scaled(self.case(policy)))

    def candidate(self, strategy: Strategy, policy: Recompute, micro_batch: int) -> Candidate:
        """Everything about one configuration."""
        batch, mesh = self.settings.batch, strategy.mesh_shape(self.settings.world_size)
        count = batch.samples // (micro_batch * mesh.data_ranks)
        tokens = micro_batch * batch.sequence
        found = self.simulated(policy, micro_batch)
        plain = self.simulated(NoRecompute(), micro_batch)
        table = self.workload.largest_table
        work = replace(
            self.workload,
            accumulation=count,
            activation=self.workload.product_width * tokens * table[-1],
            recomputed=speed.operations(found) > speed.operations(plain),
        )
        held = strategy.state_bytes(work, mesh)
        if unknown := math.isnan(held.optimizer):
            held = replace(held, optimizer=0.0)
        transfers = tuple(t for t in strategy.transfers(work, mesh) if t.ranks > 1)
        kept = sum(found[key] for key in _STATE) + self.saved_by_compiler(policy, micro_batch)
        # Tensor parallelism gathers the head's weight (2 bytes) and sums its whole gradient (4).
        whole_head = (2 + 4) * math.prod(table) * (1 - 1 / mesh.tensor)
        return Candidate(
            strategy=strategy.described(mesh),
            mesh=mesh,
            recompute=str(policy),
            micro_batch=micro_batch,
            micro_batches=count,
            held=held,
            activations=(peak(found)[1] - kept) / mesh.tensor + whole_head,
            parts=self._seconds(found, plain, held, transfers, mesh.tensor, count, tokens),
            transfers=transfers,
            unknown=unknown,
        )

    def _seconds(
        self,
        found: Measured,
        plain: Measured,
        held: StateBytes,
        transfers: Iterable[Transfer],
        tensor: int,
        micro_batches: int,
        tokens: int,
    ) -> dict[str, float]:
        """Seconds of an optimizer step by part.

        Args:
            found: a step of two micro-batches on one device, under the recompute policy.
            plain: the same without one.
            held: what the optimizer reads and writes.
            transfers: what is sent.
            tensor: ranks that share a micro-batch.
            micro_batches: of the step.
            tokens: of a micro-batch.
        """
        dtype = self.settings.product_dtype
        memory = speed.MEMORY_EFFICIENCY * self.device.bytes_per_second
        copied = speed.COPY_EFFICIENCY * self.device.bytes_per_second
        each = micro_batches / 2 / tensor  # two micro-batches were simulated
        products = each * speed.products_seconds(found, self.device, dtype)
        attention = each * speed.attention_seconds(found, self.device, dtype)
        # Recomputation is mostly products; its seconds are its share of the operations.
        total = speed.operations(found)
        again = 1 - speed.operations(plain) / total if total else 0.0
        # Weight, gradient (clipped, then used) and state are read and written, copies written.
        updated = 2 * held.parameters + 3 * held.gradients + 2 * held.optimizer + held.copies
        parts = {
            "matrix products": products * (1 - again),
            "attention": attention * (1 - again),
            "recomputation": (products + attention) * again,
            "element-wise": micro_batches * self._elementwise(found, plain, tokens) / tensor,
            # All but the first are added to what is there: cast, read twice and written.
            "gradients": (4 * micro_batches - 3) * found["gradients"] / tensor / copied,
            "optimizer": updated / memory,
            "communication": sum(
                speed.transfer_seconds(t, self.device, self.settings.devices) for t in transfers
            ),
        }
        launches = found["operators"] / 2 / (speed.FASTER_LAUNCHES if self.compiled else 1)
        parts["gaps"] = micro_batches * launches * speed.GAP_SECONDS
        idle = micro_batches * launches * speed.OPERATOR_SECONDS - sum(parts.values())
        return parts | {"waiting for the host": max(0.0, idle)}

    def _elementwise(self, found: Measured, plain: Measured, tokens: int) -> float:
        """Seconds of a micro-batch's element-wise work; recomputed work moves its bytes again."""
        bandwidth = self.device.bytes_per_second
        fused = self.settings.task.network_config.fused_bytes()
        if not self.compiled or fused is None:
            moved = (speed.FUSED if self.compiled else 1) * found["moved"] / 2
            return moved / (speed.COPY_EFFICIENCY * bandwidth)
        # What a policy recomputes of element-wise work, as a share of every block's.
        share = min(1.0, max(0.0, (found["moved"] - plain["moved"]) / plain["moved_forward"]))
        moved = (fused.elementwise + fused.loss + share * fused.blocks_forward) * tokens
        return moved / (speed.MEMORY_EFFICIENCY * bandwidth)

    def simulated(self, policy: Recompute, micro_batch: int) -> Measured:
        """A step of two micro-batches on one device, whatever its memory."""
        return self._scaled(policy).at(micro_batch)

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
            "mfu": useful / (ranks * self.device.peak_flops(self.settings.product_dtype)),
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


def weights_of(config: Network) -> tuple[Weight, ...]:
    """All parameters, tied ones once."""
    with torch.device("meta"):
        network = config.build()
    inside = {id(p) for block in network.blocks() for p in block.parameters()}
    copied = {id(module.weight) for module in shadowed(network)}
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
    return {
        f"{path}.{name}": _CUT[role]
        for path, role in roles.items()
        for name, parameter in network.get_submodule(path).named_parameters(recurse=False)
        if _CUT.get(role, parameter.ndim) < parameter.ndim
    }
