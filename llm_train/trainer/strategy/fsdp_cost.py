"""Bytes and collectives of ``fully_shard`` on a mesh of replicas, shards and tensor groups."""

import math

from llm_train.trainer.strategy.cost import Costed, StateBytes, Transfer, Workload
from llm_train.trainer.strategy.mesh import MeshShape


class MeshCost(Costed):
    """The cost of FSDP by its options."""

    reshard_after_forward: bool
    offload: bool

    cuts_network = True

    def rehearsable(self) -> bool:
        """Fake tensors are all on one device, so shards in host memory cannot be told apart."""
        return not self.offload

    def described(self, mesh: MeshShape) -> str:
        """The class, and what differs from its defaults."""
        parts = {
            type(self).__name__: True,
            f"{mesh.replicas} replicas": mesh.replicas > 1,
            f"tensor {mesh.tensor}": mesh.tensor > 1,
            "no reshard": not self.reshard_after_forward,
            "offload": self.offload,
        }
        return ", ".join(name for name, present in parts.items() if present)

    def state_bytes(self, work: Workload, mesh: MeshShape) -> StateBytes:
        """(w + w + s) / shards, each parameter cut by rows and rounded up.

        What is held for a while comes on top: gathered parameters in the dtype of products, and,
        while gradients accumulate over micro-batches without being reduced, whole gradients in
        fp32: 4 bytes a parameter that no number of ranks makes smaller.
        """
        root, blocks = work.elements(lambda weight: weight.on_tensor_rank(mesh))
        block = blocks / max(1, work.layers)
        # Two blocks: the one that runs and the one that is gathered ahead.
        ahead = min(2 * block, blocks) if self.reshard_after_forward else blocks
        on_device = 0 if self.offload else 1
        size = on_device * work.width * sum(work.elements(lambda weight: weight.on_shard(mesh)))
        return StateBytes(
            parameters=size,
            gradients=size,
            optimizer=on_device * work.optimizer_bytes(lambda weight: weight.on_shard(mesh)),
            gathered=work.product_width * (root + ahead),
            unreduced=4.0 * (root + blocks) if work.accumulation > 1 else 0.0,
            # A block's gradients, and the flat fp32 buffer that is reduced.
            reducing=(work.product_width + 4) * block,
        )

    def transfers(self, work: Workload, mesh: MeshShape) -> list[Transfer]:
        """Gathers in every micro-batch, twice where blocks are resharded; one reduction a step.

        With w bytes of a weight in products and m micro-batches: all-gather 2 w m of blocks (w
        without resharding), reduce-scatter 4, and over replicas all-reduce 4 / shards. Under tensor
        parallelism a layer and micro-batch has 4 all-gathers and 4 reduce-scatters of B T D w, half
        as many again where it is recomputed; the embedding's output, the head's weight and its
        gradient one each.
        """
        root, blocks = work.elements(lambda weight: weight.on_tensor_rank(mesh))
        layers, width = work.layers, work.product_width
        times, twice = (work.accumulation, 2) if self.reshard_after_forward else (1, 1)
        gathered, gradients = width * times * (twice * blocks + root), 4 * (root + blocks)
        calls = times * twice * (layers + 1)
        rounds = work.accumulation * (layers * (6 if work.recomputed else 4) + 1)
        head = work.accumulation * width * math.prod(work.largest_table)
        acted = rounds * work.activation + head
        return [
            Transfer.on(mesh, "all-gather", "shard", gathered, calls),
            Transfer.on(mesh, "reduce-scatter", "shard", gradients, layers + 1),
            Transfer.on(mesh, "all-reduce", "replicate", gradients / mesh.shards, layers + 1),
            Transfer.on(mesh, "all-gather", "tensor", acted, rounds + work.accumulation),
            Transfer.on(mesh, "reduce-scatter", "tensor", acted, rounds + work.accumulation),
        ]
