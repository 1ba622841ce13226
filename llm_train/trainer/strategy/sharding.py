"""How ranks form a mesh, and how a network is cut over it. Needs a process group, no Trainer.

Three dimensions, the fastest last: ``replicate`` (copies of the shards, as in hybrid sharding),
``shard`` (parameters, gradients and optimizer state cut by ``fully_shard``) and ``tensor``
(matrices cut inside a layer). Ranks that differ in the first two read different samples; ranks of a
tensor group read the same ones and hold different positions of them between the matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)

from llm_train.errors import ConfigError
from llm_train.trainer.strategy.tensor_parallel import cut_matrices


class Blocks(Protocol):
    """A network that can say what its repeated layers are."""

    def blocks(self) -> Sequence[nn.Module]:
        """The repeated layers, in order."""
        ...


@dataclass(frozen=True, kw_only=True)
class Layout:
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
    def of(cls, ranks: int, *, replicas: int, tensor: int) -> Layout:
        """The layout of ``ranks`` ranks, all of which that are not asked for otherwise shard.

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


def make_mesh(device_type: str, layout: Layout) -> DeviceMesh:
    """The mesh of all ranks; neighbours in rank are tensor groups, then shards."""
    sizes = (layout.replicas, layout.shards, layout.tensor)
    return init_device_mesh(device_type, sizes, mesh_dim_names=("replicate", "shard", "tensor"))


def mixed_precision(precision: str) -> MixedPrecisionPolicy:
    """Products in bf16 where the precision says so; gradients are always reduced in fp32."""
    if precision in ("bf16-mixed", "bf16-true"):
        return MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    return MixedPrecisionPolicy()


def shard_network(
    network: nn.Module,
    mesh: DeviceMesh,
    *,
    policy: MixedPrecisionPolicy,
    reshard_after_forward: bool,
    offload: bool,
) -> None:
    """Makes each block one communication group and everything else the root's.

    Embedding and head stay together in the root group: tied weights must share one. Matrices are
    cut first, so that ``fully_shard`` sees parts of them.

    Args:
        network: on the meta device or materialised, not sharded yet.
        mesh: of ``make_mesh``.
        policy: dtypes of gathered parameters and of reductions.
        reshard_after_forward: free gathered blocks between forward and backward.
        offload: keep shards, their gradients and their optimizer state in host memory.
    """
    if mesh["tensor"].size() > 1:
        cut_matrices(network, mesh["tensor"])
    data = mesh["replicate", "shard"] if mesh["replicate"].size() > 1 else mesh["shard"]
    pin = mesh.device_type == "cuda"  # to copy beside computation
    offloading = CPUOffloadPolicy(pin_memory=pin) if offload else OffloadPolicy()
    blocks: Any = network
    for block in blocks.blocks():
        fully_shard(
            block,
            mesh=data,
            mp_policy=policy,
            reshard_after_forward=reshard_after_forward,
            offload_policy=offloading,
        )
    fully_shard(
        network,
        mesh=data,
        mp_policy=policy,
        reshard_after_forward=False,
        offload_policy=offloading,
    )
