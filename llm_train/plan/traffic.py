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
    layout, width = placing.layout, 2 if precision.startswith("bf16") else 4
    sizes = {w.name: math.prod(w.on_tensor_rank(placing)) for w in weights}
    root = sum(sizes[w.name] for w in weights if not w.block)
    blocks = sum(sizes[w.name] for w in weights if w.block)
    groups = layers + 1
    found: list[Transfer] = []

    def add(kind: str, over: str, whole: float, calls: float) -> None:
        ranks = {"tensor": layout.tensor, "shard": layout.shards, "replicate": layout.replicas}[
            over
        ]
        strides = {"tensor": 1, "shard": layout.tensor, "replicate": layout.tensor * layout.shards}
        if ranks > 1:
            found.append(
                Transfer(
                    kind=kind,
                    over=over,
                    ranks=ranks,
                    stride=strides[over],
                    whole=whole,
                    calls=calls,
                )
            )

    if placing.kind == "ddp":
        own = 2 if precision == "bf16-true" else 4
        add(
            "all-reduce",
            "replicate",
            own * (root + blocks),
            math.ceil(own * (root + blocks) / 25e6),
        )
    if placing.kind == "fsdp":
        times = accumulation if placing.reshard else 1
        twice = 2 if placing.reshard else 1
        add(
            "all-gather", "shard", width * times * (twice * blocks + root), times * (twice * groups)
        )
        add("reduce-scatter", "shard", 4 * (root + blocks), groups)
        add("all-reduce", "replicate", 4 * (root + blocks) / layout.shards, groups)
        if layout.tensor > 1:
            # Beside the layers the embedding's output, and the head's weight and its gradient.
            rounds = accumulation * (layers * (4 + 2 * recomputed) + 1)
            head = max((math.prod(w.shape) for w in weights if not w.block), default=0)
            whole = rounds * activation + accumulation * width * head
            add("all-gather", "tensor", whole, rounds + accumulation)
            add("reduce-scatter", "tensor", whole, rounds + accumulation)
    if placing.kind.startswith("zero"):
        stage, elements = int(placing.kind[-1]), root + blocks
        reductions = accumulation if stage >= 2 else 1
        add("reduce-scatter", "shard", 4 * elements * reductions, reductions * groups)
        gathers = 2 * accumulation if stage == 3 else 1
        add("all-gather", "shard", 2 * elements * gathers, gathers * groups)
    return found
