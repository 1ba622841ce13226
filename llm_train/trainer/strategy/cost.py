"""What a step costs under a strategy, as plain numbers: weights, bytes of a rank, transfers.

A strategy is asked for its bytes and its collectives over these values (``Strategy.state_bytes``,
``Strategy.transfers``), so that ``plan`` knows no strategy by name. Nothing here needs a process
group or a device.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, ClassVar, Self

import torch

from llm_train.trainer.strategy.mesh import MeshShape, World

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from llm_train.model.network.base import LanguageModel
    from llm_train.model.optimizer.base import Optimizer

Extent = tuple[int, ...]
"""The shape of a tensor, whole or in part."""


@dataclass(frozen=True, kw_only=True)
class Weight:
    """One parameter as a plan sees it.

    Attributes:
        name: in the network.
        extent: its shape, whole.
        block: whether it belongs to a repeated layer.
        copied: whether it gets a bf16 copy on one device.
        cut: dimension that tensor parallelism cuts; -1 is none.
    """

    name: str
    extent: Extent
    block: bool
    copied: bool
    cut: int

    def on_tensor_rank(self, mesh: MeshShape) -> Extent:
        """Its shape on one rank of a tensor group."""
        sizes = enumerate(self.extent)
        return tuple(math.ceil(n / mesh.tensor) if i == self.cut else n for i, n in sizes)

    def on_shard(self, mesh: MeshShape) -> Extent:
        """Its shape on rank 0, which has the most, where rows are shared among the shards."""
        rows, *rest = self.on_tensor_rank(mesh)
        return (math.ceil(rows / mesh.shards), *rest)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """An optimizer step whose cost is asked for.

    Attributes:
        weights: of the network, tied ones once.
        optimizer: says how much state a parameter has.
        precision: of the Trainer.
        accumulation: micro-batches of the step.
        activation: bytes of one (B, T, D) tensor of a micro-batch.
        recomputed: whether blocks run their forward a second time.
    """

    weights: tuple[Weight, ...]
    optimizer: Optimizer
    precision: str
    accumulation: int = 1
    activation: float = 0.0
    recomputed: bool = False

    @property
    def width(self) -> int:
        """Bytes of a weight that the optimizer updates."""
        return 2 if self.precision == "bf16-true" else 4

    @property
    def product_width(self) -> int:
        """Bytes of a weight in a matrix product."""
        return 2 if "16" in self.precision else 4

    @property
    def layers(self) -> int:
        """Repeated layers, told apart by the first number in a name."""
        names = [weight.name.split(".") for weight in self.weights if weight.block]
        return len({next(part for part in name if part.isdigit()) for name in names})

    @property
    def largest_table(self) -> Extent:
        """The largest weight outside the layers: (V, D), of an embedding or of the head."""
        return max((w.extent for w in self.weights if not w.block), key=math.prod, default=(0, 0))

    def elements(self, part: Callable[[Weight], Extent] = lambda w: w.extent) -> tuple[int, int]:
        """Numbers outside the repeated layers, and in them, where a rank has ``part`` of each."""
        sizes = [(weight.block, math.prod(part(weight))) for weight in self.weights]
        return sum(n for block, n in sizes if not block), sum(n for block, n in sizes if block)

    def optimizer_bytes(self, part: Callable[[Weight], Extent], width: int = 0) -> float:
        """State that the optimizer keeps for ``part`` of every weight, of ``width`` bytes each.

        nan where it is unknown.
        """
        dtype = torch.bfloat16 if (width or self.width) == 2 else torch.float32
        # In all layers.
        alike = Counter((re.sub(r"\d+", "0", w.name), part(w)) for w in self.weights)
        return sum(
            count * self.optimizer.state_bytes(name, torch.empty(size, dtype=dtype, device="meta"))
            for (name, size), count in alike.items()
        )


@dataclass(frozen=True, kw_only=True)
class StateBytes:
    """Bytes on one rank that live from step to step, and those that come with the strategy.

    Attributes:
        parameters: as the optimizer updates them.
        copies: in bf16 alongside them, or DeepSpeed's bf16 weights.
        gradients: before the update.
        optimizer: moments, and DeepSpeed's fp32 masters.
        agreed: what replicas last agreed on, where they do so now and then.
        gathered: parameters that are whole for a while.
        unreduced: whole gradients that wait for their reduction while micro-batches accumulate.
        reducing: buffers of a reduction on its way.
    """

    parameters: float
    copies: float = 0.0
    gradients: float
    optimizer: float
    agreed: float = 0.0
    gathered: float = 0.0
    unreduced: float = 0.0
    reducing: float = 0.0

    @property
    def total(self) -> float:
        """What is there in a backward besides activations."""
        kept = self.parameters + self.copies + self.optimizer + self.agreed
        return kept + max(self.gradients, self.unreduced) + self.gathered + self.reducing


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """All collectives of one kind over one dimension of the mesh, in an optimizer step.

    A ring moves ``(n - 1) / n`` of the whole through each of n ranks, and twice that for an
    all-reduce.

    Attributes:
        kind: all-reduce, all-gather or reduce-scatter.
        over: replicate, shard or tensor.
        ranks: of the group.
        stride: ranks between neighbours of the group.
        whole: bytes of the tensors gathered or reduced.
        calls: how many.
    """

    kind: str
    over: str
    ranks: int
    stride: int
    whole: float
    calls: float

    @classmethod
    def on(cls, mesh: MeshShape, kind: str, over: str, whole: float, calls: float) -> Transfer:
        """Over one dimension of ``mesh``, of which tensor groups are the innermost."""
        sizes = {"tensor": mesh.tensor, "shard": mesh.shards, "replicate": mesh.replicas}
        stride = math.prod(sizes[name] for name in takewhile(lambda name: name != over, sizes))
        return cls(kind=kind, over=over, ranks=sizes[over], stride=stride, whole=whole, calls=calls)

    @property
    def through_rank(self) -> float:
        """Bytes that one rank sends."""
        rounds = 2 if self.kind == "all-reduce" else 1
        return rounds * self.whole * (self.ranks - 1) / self.ranks


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A way of using a strategy that ``parity`` compares with one process.

    Attributes:
        name: in the table, and after ``--strategies``.
        arguments: of the class.
        least_ranks: fewer make no sense.
        same: whether it computes what one process computes, but for rounding; the distance of one
            that does not is shown and not judged.
    """

    name: str
    arguments: Mapping[str, object] = field(default_factory=dict)
    least_ranks: int = 1
    same: bool = True


class Costed:
    """What every strategy answers about its cost; here, of one that holds everything everywhere."""

    cuts_network: ClassVar[bool] = False
    """Whether ``shard_over`` leaves a rank with parts of the parameters."""

    def rehearsable(self) -> bool:
        """Whether one step under fake tensors is a step of this strategy."""
        return True

    @classmethod
    def candidates(cls, world: World) -> Iterator[Self]:
        """What a search for the fastest configuration tries on the ranks of ``world``."""
        if world.ranks > 1:
            yield cls()

    @classmethod
    def compared(cls, ranks: int) -> Iterator[Compared]:
        """What parity compares with one process on so many ranks."""
        yield Compared(name=cls.__name__.lower())

    def described(self, mesh: MeshShape) -> str:
        """The class and what was chosen of its options, in a few words."""
        return type(self).__name__

    def state_bytes(self, work: Workload, mesh: MeshShape) -> StateBytes:
        """Bytes of one rank: here w + 2 for a copy (mixed precision) + w + the optimizer's state.

        w is the width of a weight, 4 bytes or, under bf16-true, 2.
        """
        copied = sum(math.prod(weight.extent) for weight in work.weights if weight.copied)
        size = work.width * sum(work.elements())
        return StateBytes(
            parameters=size,
            copies=2 * copied if work.precision.endswith("mixed") else 0,
            gradients=size,
            optimizer=work.optimizer_bytes(lambda weight: weight.extent),
        )

    def transfers(self, work: Workload, mesh: MeshShape) -> list[Transfer]:
        """What is gathered and reduced in an optimizer step; nothing on one device."""
        return []

    def shard_over(self, network: LanguageModel, mesh: DeviceMesh, precision: str) -> None:
        """Cuts the parameters over ``mesh``; nothing to do where they are replicated."""

    def begin_micro_batch(self, network: LanguageModel, *, last: bool) -> None:
        """Told before every forward whether it is the last of its optimizer step."""
