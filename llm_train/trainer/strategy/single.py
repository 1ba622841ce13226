"""One device, one process: what ``trainer.strategy: auto`` means when nothing else is needed."""

from collections.abc import Iterator
from typing import Any, Self

from lightning.pytorch.strategies import SingleDeviceStrategy

from llm_train.context import Context, StrategyTraits
from llm_train.trainer.strategy.base import Strategy
from llm_train.trainer.strategy.cost import Compared
from llm_train.trainer.strategy.mesh import World


class SingleDevice(Strategy, SingleDeviceStrategy):
    """Lightning's single-device strategy with our placement and state.

    Args:
        device: torch device, for instance cpu or cuda:0.
    """

    words = ("single",)

    def __init__(self, device: str = "cpu") -> None:
        super().__init__(device=device)

    @classmethod
    def from_word(cls, word: str, world: World) -> Self:
        """On the first rank's device."""
        return cls(world.device)

    def traits(self, ranks: int) -> StrategyTraits:
        """Nothing stands between a gradient and its update."""
        name = type(self).__name__
        return StrategyTraits(name=name, communicates=False, final_in_backward=True)

    def problems(self, context: Context) -> Iterator[str]:
        """Another kind of device, or more than one."""
        if self.root_device.type != context.accelerator.type:
            yield (
                f"trainer.strategy.init_args.device={self.root_device} does not fit "
                f"trainer.accelerator={context.accelerator.type}; write trainer.strategy=single"
            )
        if context.ranks > 1:
            yield (
                f"trainer.strategy=single cannot use {context.ranks} ranks; "
                "choose ddp, fsdp or zero1-3"
            )

    def reduce(self, tensor: Any, *args: Any, **kwargs: Any) -> Any:
        """One rank has the sum already, whatever process groups exist."""
        return tensor

    # --- cost -------------------------------------------------------------------------------------

    @classmethod
    def candidates(cls, world: World) -> Iterator[Self]:
        """Only where there is one rank."""
        if world.ranks == 1:
            yield cls(world.device)

    @classmethod
    def compared(cls, ranks: int) -> Iterator[Compared]:
        """Nothing: one process is what the others are compared with."""
        yield from () if cls is SingleDevice else super().compared(ranks)
