"""Tensor and sequence parallelism: matrices cut over ranks, activations cut by position.

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

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from llm_train.model.network.base import LanguageModel

_SEQUENCE, _HEADS = 1, 2  # dimensions of (B, T, D) and (B, T, H, head_dim)


def cut_matrices(network: LanguageModel, mesh: DeviceMesh) -> None:
    """Turns every parameter into a DTensor on ``mesh``, whole or cut, and adds the communication.

    Raises:
        ConfigError: the network does not say how it may be cut.
    """
    plan: dict[str, ParallelStyle] = {
        path: _STYLES[role]() for path, role in network.tensor_roles().items()
    }
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
