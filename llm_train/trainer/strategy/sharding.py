"""How ranks form a mesh, and how a network is cut over it. Needs a process group, no Trainer.

Three dimensions, the fastest last: ``replicate`` (copies of the shards, as in hybrid sharding),
``shard`` (parameters, gradients and optimizer state cut by ``fully_shard``) and ``tensor``
(matrices cut inside a layer). Ranks that differ in the first two read different samples; ranks of a
tensor group read the same ones and hold different positions of them between the matrices.
"""

from __future__ import annotations

from functools import partial

import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)

from llm_train.model.network.base import LanguageModel
from llm_train.runtime.devices import KINDS
from llm_train.trainer.strategy.mesh import MeshShape
from llm_train.trainer.strategy.tensor_parallel import cut_matrices


def make_mesh(device_type: str, shape: MeshShape) -> DeviceMesh:
    """The mesh of all ranks; neighbours in rank are tensor groups, then shards."""
    sizes = (shape.replicas, shape.shards, shape.tensor)
    return init_device_mesh(device_type, sizes, mesh_dim_names=("replicate", "shard", "tensor"))


def shard_network(
    network: LanguageModel,
    mesh: DeviceMesh,
    *,
    precision: str,
    reshard_after_forward: bool,
    offload: bool,
) -> None:
    """Makes each block one communication group and everything else the root's.

    Embedding and head stay together in the root group: tied weights must share one. Matrices are
    cut first, so that ``fully_shard`` sees parts of them.

    Args:
        network: on the meta device or materialised, not sharded yet.
        mesh: of ``make_mesh``.
        precision: bf16-mixed and bf16-true gather in bf16; gradients are always reduced in fp32.
        reshard_after_forward: free gathered blocks between forward and backward.
        offload: keep shards, their gradients and their optimizer state in host memory.
    """
    if mesh["tensor"].size() > 1:
        cut_matrices(network, mesh["tensor"])
    data = mesh["replicate", "shard"] if mesh["replicate"].size() > 1 else mesh["shard"]
    pin = KINDS[mesh.device_type].pinned  # to copy alongside computation
    offloading = CPUOffloadPolicy(pin_memory=pin) if offload else OffloadPolicy()
    policy = MixedPrecisionPolicy()
    if precision in ("bf16-mixed", "bf16-true"):
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    shard = partial(fully_shard, mesh=data, mp_policy=policy, offload_policy=offloading)
    for block in network.blocks():
        shard(block, reshard_after_forward=reshard_after_forward)
    shard(network, reshard_after_forward=False)
