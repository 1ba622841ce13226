"""How many ranks share what: the shape of the mesh of ranks, as plain numbers.

Needs neither a process group nor torch, so that a run of a thousand ranks can be checked anywhere.
"""

from dataclasses import dataclass

from llm_train.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class World:
    """The ranks that a run will have.

    Attributes:
        ranks: processes in all, each with a device of its own.
        devices: devices on each node.
        device: torch's name of the first rank's device.
    """

    ranks: int = 1
    devices: int = 1
    device: str = "cpu"

    @property
    def nodes(self) -> int:
        """Machines that share the ranks."""
        return max(1, self.ranks // self.devices)


@dataclass(frozen=True, kw_only=True)
class MeshShape:
    """Sizes of the mesh's dimensions; their product is the number of ranks.

    Attributes:
        replicas: copies of the sharded state.
        shards: ranks that share one copy.
        tensor: ranks that share one sample.
    """

    replicas: int = 1
    shards: int = 1
    tensor: int = 1

    @classmethod
    def of(cls, ranks: int, *, replicas: int, tensor: int) -> "MeshShape":
        """The shape that ``ranks`` ranks have when all that are not asked for otherwise shard.

        Raises:
            ConfigError: the ranks do not divide.
        """
        for key, value in (("replicas", replicas), ("tensor", tensor)):
            if value < 1:
                raise ConfigError(f"trainer.strategy.init_args.{key}={value} must be at least 1")
        if ranks % (replicas * tensor):
            asked = f"replicas={replicas} x tensor={tensor} = {replicas * tensor}"
            raise ConfigError(
                f"trainer.strategy: {ranks} ranks are not a multiple of {asked}; "
                f"{_dividing(ranks, replicas * tensor)}"
            )
        return cls(replicas=replicas, shards=ranks // (replicas * tensor), tensor=tensor)

    @property
    def data_ranks(self) -> int:
        """Groups of ranks that each read samples of their own."""
        return self.replicas * self.shards


def _dividing(ranks: int, wanted: int) -> str:
    below = max(n for n in range(1, min(wanted, ranks) + 1) if ranks % n == 0)
    above = [n for n in range(wanted, ranks + 1) if ranks % n == 0]
    numbers = f"{below} or {above[0]}" if above else f"{below}"
    return f"use a product of {numbers}, or another number of ranks"
