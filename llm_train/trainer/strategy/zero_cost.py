"""Bytes and collectives of DeepSpeed's stages, as its paper has them (arXiv:1910.02054, section 5).

Weights are bf16 with fp32 masters, whatever the precision of the Trainer: what DeepSpeed is for.
"""

from collections.abc import Iterator
from typing import Self

from llm_train.trainer.strategy.cost import Compared, Costed, StateBytes, Transfer, Workload
from llm_train.trainer.strategy.mesh import MeshShape, World


class StageCost(Costed):
    """The cost of ZeRO by its stage."""

    stage: int
    hpz_partition_size: int

    def rehearsable(self) -> bool:
        """False: the engine does not run on fake tensors."""
        return False

    @classmethod
    def candidates(cls, world: World) -> Iterator[Self]:
        """Every stage."""
        for way in cls.compared(world.ranks) if world.ranks > 1 else ():
            yield cls(**way.arguments)

    @classmethod
    def compared(cls, ranks: int) -> Iterator[Compared]:
        """Every stage."""
        for stage in (1, 2, 3):
            yield Compared(name=f"{cls.__name__.lower()}{stage}", arguments={"stage": stage})

    def described(self, mesh: MeshShape) -> str:
        """The class and its stage."""
        return f"{type(self).__name__} {self.stage}"

    def state_bytes(self, work: Workload, mesh: MeshShape) -> StateBytes:
        """With s bytes of optimizer state a parameter, and what is gathered for a while on top.

        Stage 1 has 2 + 2 + (4 + s) / ranks, stage 2 has 2 + (2 + 4 + s) / ranks, and stage 3
        divides all of it.
        """
        root, blocks = work.elements()
        elements, ranks = root + blocks, mesh.shards
        moments = work.optimizer_bytes(lambda weight: weight.extent, width=4)
        gathered = 2 * (root + 2 * blocks / max(1, work.layers))
        second = 2 * elements / self.hpz_partition_size if self.hpz_partition_size > 1 else 0.0
        return StateBytes(
            parameters=2 * elements / (ranks if self.stage == 3 else 1),
            copies=second,
            gradients=2 * elements / (ranks if self.stage >= 2 else 1),
            optimizer=(4 * elements + moments) / ranks,
            gathered=gathered if self.stage == 3 else 0.0,
            reducing=2 * min(elements, 5e8) if self.stage == 2 else 0.0,
        )

    def transfers(self, work: Workload, mesh: MeshShape) -> list[Transfer]:
        """Stages 2 and 3 reduce in every micro-batch, and stage 3 gathers in each as well."""
        elements, groups = sum(work.elements()), work.layers + 1
        reductions = work.accumulation if self.stage >= 2 else 1
        gathers = 2 * work.accumulation if self.stage == 3 else 1
        reduced, gathered = 4 * elements * reductions, 2 * elements * gathers
        return [
            Transfer.on(mesh, "reduce-scatter", "shard", reduced, reductions * groups),
            Transfer.on(mesh, "all-gather", "shard", gathered, gathers * groups),
        ]
