"""How ranks form a mesh, and how a network is cut over it. Needs a process group, no Trainer.

Three dimensions, the fastest last: ``replicate`` (copies of the shards, as in hybrid sharding),
``shard`` (parameters, gradients and optimizer state cut by ``fully_shard``) and ``tensor``
(matrices cut inside a layer). Ranks that differ in the first two read different samples; ranks of a
tensor group read the same ones and hold different positions of them between the matrices.

Tensor and sequence parallelism: matrices cut over ranks, activations cut by position.

Between two matrices that belong together (query-key-value and output, up and down) each rank has
some heads or some hidden features of every position; everywhere else it has all features of its
``T / ranks`` positions (Korthikanti et al., arXiv:2205.05198, section 4.2). So norms, residuals and
dropout are cut too, and an all-gather before and a reduce-scatter after each pair are all that is
sent.

What is unusual is the end: the weight of the head is gathered, and each rank scores its own
positions over the whole vocabulary. Every loss therefore works as it is, chunked or not, at the
price of gathering that weight once a micro-batch and of holding it whole for that time.

A network says what its modules are for (``LanguageModel.tensor_roles``); the styles that do it are
torch's own where torch has them.
"""

from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from llm_train.model.network.base import LanguageModel
from llm_train.runtime.devices import KINDS
from llm_train.trainer.strategy.mesh import MeshShape


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


_SEQUENCE, _HEADS = 1, 2  # dimensions of (B, T, D) and (B, T, H, head_dim)


def cut_matrices(network: LanguageModel, mesh: DeviceMesh) -> None:
    """Turns every parameter into a DTensor on ``mesh``, whole or cut, and adds the communication.

    Raises:
        ConfigError: the network does not say how it may be cut.
    """
    roles = network.tensor_roles().items()
    plan: dict[str, ParallelStyle] = {path: _STYLES[role]() for path, role in roles}
    names: dict[int, list[str]] = defaultdict(list)  # tied parameters have several
    for name, parameter in network.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(name)
    parallelize_module(network, mesh, plan)
    for first, *others in names.values():
        for other in others:
            module, _, name = other.rpartition(".")
            network.get_submodule(module).register_parameter(name, network.get_parameter(first))
    whole = [name for name, p in network.named_parameters() if not isinstance(p, DTensor)]
    assert not whole, f"parameters without a role: {whole}"


def own_positions(tokens: Tensor, mesh: DeviceMesh) -> Tensor:
    """(B, T) -> (B, T / ranks): the positions that this rank holds between the matrices."""
    return tokens.chunk(mesh.size(), dim=1)[mesh.get_local_rank()]


class _Cut(ParallelStyle):
    """Distributes the parameters of a module by one placement and leaves its forward alone."""

    placement: Shard | Replicate = Shard(0)

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        return distribute_module(module, device_mesh, self._distribute)

    def _distribute(self, _: str, module: nn.Module, mesh: DeviceMesh) -> None:
        for name, parameter in module.named_parameters(recurse=False):
            part = distribute_tensor(parameter, mesh, [self.placement], src_data_rank=None)
            module.register_parameter(name, nn.Parameter(part, parameter.requires_grad))


class _Embedding(RowwiseParallel):
    """(B, T) on every rank -> (B, T / ranks, D).

    Waits for its reduce-scatter: torch's own hands over a tensor that is still on its way, and a
    compiled block that takes it as an input loses the gradient to it (torch 2.13).
    """

    def __init__(self) -> None:
        super().__init__(input_layouts=Replicate(), output_layouts=Shard(_SEQUENCE))

    @staticmethod
    def _prepare_output_fn(
        output_layouts: Any, use_local_output: bool, mod: nn.Module, outputs: Any, device_mesh: Any
    ) -> Any:
        return outputs.redistribute(placements=output_layouts).to_local()


class _Positions(_Cut):
    """A table of positions: whole on every rank, read at the rank's own positions."""

    placement = Replicate()

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        return distribute_module(module, device_mesh, self._distribute, _take_own, _to_local)


def _take_own(_: nn.Module, inputs: Any, mesh: DeviceMesh) -> Any:
    (indices,) = inputs  # (T,) or (B, T)
    whole = DTensor.from_local(indices, mesh, [Replicate()], run_check=False)
    return whole.redistribute(placements=[Shard(indices.dim() - 1)])


def _to_local(_: nn.Module, output: Any, __: DeviceMesh) -> Any:
    return output.to_local()


_STYLES: Mapping[str, Any] = {
    "embedding": _Embedding,
    "positions": _Positions,
    # (B, T / ranks, D) -> (B, T / ranks, D)
    "norm": partial(SequenceParallel, sequence_dim=_SEQUENCE, use_local_output=True),
    # (B, T, H / ranks, head_dim) -> the same
    "head_norm": partial(SequenceParallel, sequence_dim=_HEADS, use_local_output=True),
    # (B, T / ranks, in) -> (B, T, out / ranks)
    "column": partial(ColwiseParallel, input_layouts=Shard(_SEQUENCE)),
    # (B, T, in / ranks) -> (B, T / ranks, out)
    "row": partial(RowwiseParallel, output_layouts=Shard(_SEQUENCE)),
    "head": _Cut,
}
ROLES = tuple(_STYLES)
