"""One device, one process: what ``trainer.strategy: auto`` means when nothing else is needed."""

from __future__ import annotations

from lightning.pytorch.strategies import SingleDeviceStrategy

from llm_train.trainer.strategy.base import Placement


class SingleDevice(Placement, SingleDeviceStrategy):
    """Lightning's single-device strategy with our placement and state.

    Args:
        device: torch device, for instance cpu or cuda:0.
    """

    def __init__(self, device: str = "cpu") -> None:
        super().__init__(device=device)
