"""Where weights, gradients and optimizer state would live: a strategy as plain numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llm_train.settings import Settings
from llm_train.trainer.strategy.mesh import MeshShape


@dataclass(frozen=True, kw_only=True)
class Placing:
    """A strategy on a number of ranks.

    Attributes:
        kind: single, ddp, fsdp, zero1, zero2 or zero3.
        layout: the mesh; DDP's ranks are replicas.
        reshard: free gathered blocks between forward and backward (FSDP).
        offload: shards, gradients and optimizer state in host memory.
    """

    kind: str
    layout: MeshShape
    reshard: bool = True
    offload: bool = False

    @property
    def ranks(self) -> int:
        """All of them."""
        return self.layout.replicas * self.layout.shards * self.layout.tensor

    @property
    def data_ranks(self) -> int:
        """Groups of ranks that read samples of their own."""
        return self.layout.replicas * self.layout.shards

    def __str__(self) -> str:
        layout, name = self.layout, self.kind.upper() if self.kind != "single" else "one device"
        if self.kind.startswith("zero"):
            name = f"ZeRO {self.kind[-1]}"
        parts = [name]
        if self.kind == "fsdp":
            if layout.replicas > 1:
                parts.append(f"{layout.replicas} replicas")
            if layout.tensor > 1:
                parts.append(f"tensor {layout.tensor}")
            if not self.reshard:
                parts.append("no reshard")
            if self.offload:
                parts.append("offload")
        return ", ".join(parts)


def placing_of(settings: Settings) -> Placing:
    """What ``trainer.strategy`` means on the configured ranks."""
    chosen: Any = settings.strategy
    name = type(chosen).__name__
    ranks = settings.world_size
    if name == "SingleDevice":
        return Placing(kind="single", layout=MeshShape())
    if name == "DDP":
        return Placing(kind="ddp", layout=MeshShape(replicas=ranks))
    if name == "FSDP":
        return Placing(
            kind="fsdp",
            layout=settings.mesh_shape,
            reshard=getattr(chosen, "reshard_after_forward", True),
            offload=getattr(chosen, "offload", False),
        )
    if name == "ZeRO":
        return Placing(kind=f"zero{chosen.stage}", layout=MeshShape(shards=ranks))
    return Placing(kind="ddp", layout=MeshShape(replicas=ranks))  # LocalSGD: whole on every rank
