"""One device, one process: what ``trainer.strategy: auto`` means when nothing else is needed."""

from __future__ import annotations

from lightning.pytorch.strategies import SingleDeviceStrategy

from llm_train.trainer.strategy.base import Strategy, World
from llm_train.trainer.strategy.mesh import MeshShape


class SingleDevice(Strategy, SingleDeviceStrategy):
    """Lightning's single-device strategy with our placement and state.

    Args:
        device: torch device, for instance cpu or cuda:0.
    """

    words = ("single",)

    def __init__(self, device: str = "cpu") -> None:
        super().__init__(device=device)

    @classmethod
    def from_word(cls, word: str, world: World) -> SingleDevice:
        """On the first rank's device."""
        return cls(world.device)

    def mesh_shape(self, ranks: int) -> MeshShape:
        """One rank that holds everything."""
        return MeshShape(replicas=ranks)
