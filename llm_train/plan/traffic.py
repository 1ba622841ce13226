"""What one rank's groups send in an optimizer step, by collective, from the strategy alone.

Bytes are those of the whole tensor that is gathered or reduced; a ring moves ``(n - 1) / n`` of
them through each of n ranks, and twice that for an all-reduce. Per parameter and step, with m
micro-batches and w bytes of the dtype of products::

    DDP                  all-reduce 4                                  once a step
    FSDP                 all-gather 2 w m, reduce-scatter 4            reduced once a step
    FSDP, no reshard     all-gather w, reduce-scatter 4
    hybrid               the same, and all-reduce 4 / shards over the replicas
    ZeRO 1               reduce-scatter 4, all-gather 2
    ZeRO 2               reduce-scatter 4 m, all-gather 2           DeepSpeed reduces each time
    ZeRO 3               all-gather 4 m, reduce-scatter 4 m
    tensor               a layer and micro-batch: 4 all-gathers and 4 reduce-scatters of B T D w,
                         half as many again of each where the layer is recomputed; one each for
                         the embedding, and of the head's weight and gradient
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from llm_train.plan.devices import Accelerator
from llm_train.plan.formula import Weight
from llm_train.plan.placing import Placing

LINK_EFFICIENCY = 0.8
"""Of a link's bandwidth: NCCL's large transfers."""

_LATENCY = 15e-6
_LATENCY_PER_NODE = 5e-6


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """All collectives of one kind over one dimension of the mesh, in an optimizer step.

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

    @property
    def through_rank(self) -> float:
        """Bytes that one rank sends."""
        rounds = 2 if self.kind == "all-reduce" else 1
        return rounds * self.whole * (self.ranks - 1) / self.ranks

    def seconds(self, device: Accelerator, per_node: int) -> float:
        """At the bandwidth of the slowest link on the way, nothing hidden."""
        if self.ranks == 1:
            return 0.0
        nodes = math.ceil(self.ranks * self.stride / per_node)
        bandwidth, latency = device.link, _LATENCY
        if nodes > 1:
            # Rings enter a node through every adapter whose GPU is of the group.
            beside = max(
                1, min(self.ranks, per_node // self.stride if self.stride < per_node else 1)
            )
            bandwidth = min(device.link, beside * device.network)
            latency += _LATENCY_PER_NODE * nodes
        return self.through_rank / (LINK_EFFICIENCY * bandwidth) + self.calls * latency


def traffic(
    weights: list[Weight],
    placing: Placing,
    precision: str,
    *,
    accumulation: int,
    activation: float,
    layers: int,
    recomputed: float,
) -> list[Transfer]:
    """The transfers of an optimizer step.

    Args:
        weights: of the network.
        placing: the strategy.
        precision: of the Trainer.
        accumulation: micro-batches of the step.
        activation: bytes of one (B, T, D) tensor.
        layers: blocks.
        recomputed: share of the blocks whose products run twice.
    """
    sizes = {w.name: math.prod(w.on_tensor_rank(placing)) for w in weights}
    volume = _Volume(
        root=sum(sizes[w.name] for w in weights if not w.block),
        blocks=sum(sizes[w.name] for w in weights if w.block),
        groups=layers + 1,
        precision=precision,
        accumulation=accumulation,
    )
    moves: list[_Move] = []
    if placing.kind == "ddp":
        moves += _ddp(volume)
    elif placing.kind == "fsdp":
        moves += _fsdp(volume, placing)
        # Beside the layers the embedding's output, and the head's weight and its gradient.
        rounds = accumulation * (layers * (4 + 2 * recomputed) + 1)
        head = max((math.prod(w.shape) for w in weights if not w.block), default=0)
        whole = rounds * activation + accumulation * volume.width * head
        for kind in ("all-gather", "reduce-scatter"):
            moves.append((kind, "tensor", whole, rounds + accumulation))
    elif placing.kind.startswith("zero"):
        moves += _zero(volume, int(placing.kind[-1]))
    layout = placing.layout
    ranks = {"tensor": layout.tensor, "shard": layout.shards, "replicate": layout.replicas}
    strides = {"tensor": 1, "shard": layout.tensor, "replicate": layout.tensor * layout.shards}
    return [
        Transfer(
            kind=kind, over=over, ranks=ranks[over], stride=strides[over], whole=whole, calls=calls
        )
        for kind, over, whole, calls in moves
        if ranks[over] > 1
    ]


_Move = tuple[str, str, float, float]  # collective, dimension of the mesh, bytes in all, calls


class _Volume(NamedTuple):
    """What there is to send: weights in the root and in blocks, and how often."""

    root: int
    blocks: int
    groups: int
    precision: str
    accumulation: int

    @property
    def width(self) -> int:
        """Bytes of a weight that is gathered."""
        return 2 if self.precision.startswith("bf16") else 4


def _ddp(volume: _Volume) -> list[_Move]:
    own = 2 if volume.precision == "bf16-true" else 4
    size = own * (volume.root + volume.blocks)
    return [("all-reduce", "replicate", size, math.ceil(size / 25e6))]


def _fsdp(volume: _Volume, placing: Placing) -> list[_Move]:
    times = volume.accumulation if placing.reshard else 1
    twice = 2 if placing.reshard else 1
    gathered = volume.width * times * (twice * volume.blocks + volume.root)
    gradients = 4 * (volume.root + volume.blocks)
    return [
        ("all-gather", "shard", gathered, times * twice * volume.groups),
        ("reduce-scatter", "shard", gradients, volume.groups),
        ("all-reduce", "replicate", gradients / placing.layout.shards, volume.groups),
    ]


def _zero(volume: _Volume, stage: int) -> list[_Move]:
    elements = volume.root + volume.blocks
    reductions = volume.accumulation if stage >= 2 else 1
    gathers = 2 * volume.accumulation if stage == 3 else 1
    return [
        ("reduce-scatter", "shard", 4 * elements * reductions, reductions * volume.groups),
        ("all-gather", "shard", 2 * elements * gathers, gathers * volume.groups),
    ]
