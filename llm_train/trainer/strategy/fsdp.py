"""Fully sharded data parallelism through torch's ``fully_shard``, on GPUs and on CPUs.

Built on Lightning's ModelParallelStrategy, because its FSDPStrategy cannot clip by norm, reduces in
bf16 under mixed precision and refuses CPUs. Two things are different from stock: the mixed
precision policy keeps fp32 master weights and reduces in fp32, and gradients are reduced on the
last micro-batch of a step only. Without resharding after forward, parameters are also gathered, and
cast, once a step: they stay gathered from the first micro-batch to the last.

One class for full, hybrid and tensor-parallel sharding: they are sizes of one mesh
(``sharding.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from llm_train.errors import ConfigError
from llm_train.model.network.base import LanguageModel
from llm_train.trainer.strategy import canonical
from llm_train.trainer.strategy.base import Strategy, World
from llm_train.trainer.strategy.mesh import MeshShape
from llm_train.trainer.strategy.sharding import make_mesh, mixed_precision, shard_network
from llm_train.trainer.strategy.tensor_parallel import own_positions


class FSDP(Strategy, ModelParallelStrategy):
    """Parameters, gradients and optimizer state sharded over ranks (ZeRO-3 in torch's own way).

    Args:
        reshard_after_forward: free gathered parameters between forward and backward. Off, they are
            kept and gathered once an optimizer step: more memory, less communication (ZeRO-2).
        replicas: copies of the sharded state (hybrid sharding): parameters are gathered within a
            copy, gradients also reduced between copies. Usually the number of nodes.
        tensor: ranks that compute one sample together, each with a part of every matrix and a part
            of the positions (tensor and sequence parallelism). Neighbouring ranks; at most the
            devices of a node, since they talk in every layer.
        offload: keep shards, gradients and optimizer state in host memory and update them there.
        reduction: fast, or canonical: gradients are summed in the order of one process, so that any
            number of ranks gives the same bits. They are reduced after every micro-batch, and
            gathered for their norm, so it is slow: for verification.
        timeout_minutes: how long a collective may wait for a rank.
    """

    words = ("fsdp", "hsdp", "tp")

    def __init__(
        self,
        reshard_after_forward: bool = True,
        replicas: int = 1,
        tensor: int = 1,
        offload: bool = False,
        reduction: canonical.Reduction = "fast",
        timeout_minutes: float = 30.0,
    ) -> None:
        canonical.check_reduction(reduction)
        super().__init__(timeout=timedelta(minutes=timeout_minutes))
        self.reshard_after_forward = reshard_after_forward
        self.replicas = replicas
        self.tensor = tensor
        self.offload = offload
        self.reduction = reduction
        self._shards: canonical.Shards | None = None

    @classmethod
    def from_word(cls, word: str, world: World) -> FSDP:
        """``fsdp`` shards over all ranks, ``hsdp`` within each node, ``tp`` cuts over a node."""
        if word == "hsdp":
            if world.nodes == 1:
                raise ConfigError(
                    "trainer.strategy=hsdp on one node is fsdp; write fsdp, or class_path: FSDP "
                    "with init_args: {replicas: N}"
                )
            return cls(replicas=world.nodes)
        if word == "tp" and world.devices == 1:
            raise ConfigError("trainer.strategy=tp on one device has nothing to cut; write single")
        return cls(tensor=world.devices if word == "tp" else 1)

    def mesh_shape(self, ranks: int) -> MeshShape:
        """The ranks that neither hold copies nor share samples share the shards."""
        return MeshShape.of(ranks, replicas=self.replicas, tensor=self.tensor)

    @property
    def shadow_dtype(self) -> torch.dtype | None:
        """None: fully_shard casts while it gathers."""
        return None

    @property
    def parameter_device(self) -> torch.device:
        """Where shards are: the device, or host memory."""
        return torch.device("cpu") if self.offload else self.root_device

    def setup_environment(self) -> None:
        """Makes our mesh instead of Lightning's, which has no dimension for replicas."""
        if self.offload and self.root_device.type == "cuda":
            # Norms of gradients in host memory are reduced there.
            self._process_group_backend = "cpu:gloo,cuda:nccl"
        super(ModelParallelStrategy, self).setup_environment()
        self._setup_distributed()
        self._device_mesh = make_mesh(self.root_device.type, self.mesh_shape(self.world_size))

    def model_to_device(self) -> None:
        """Nothing: everything is where it belongs since its construction."""

    def shard(self, network: LanguageModel) -> None:
        """Cuts the network over the mesh."""
        shard_network(
            network,
            self.device_mesh,
            policy=mixed_precision(self.precision_plugin.precision),
            reshard_after_forward=self.reshard_after_forward,
            offload=self.offload,
        )
        if self.reduction == "canonical":
            self._shards = canonical.Shards(network)

    def own_targets(self, targets: Tensor) -> Tensor:
        """Under tensor parallelism each rank scores a part of the positions."""
        return targets if self.tensor == 1 else own_positions(targets, self.device_mesh["tensor"])

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Holds back the reduction of gradients until the last micro-batch of the step."""
        accumulation = self.task.trainer.accumulate_grad_batches
        network: Any = self.task.network  # fully_shard made it an FSDPModule as well
        last = (batch_idx + 1) % accumulation == 0
        network.set_requires_gradient_sync(last or self._shards is not None)
        if self._shards is not None:
            self._shards.begin(last=last)
        if not self.reshard_after_forward:
            network.set_reshard_after_backward(last)

    def backward(self, closure_loss: Any, *args: Any, **kwargs: Any) -> Any:
        """In canonical order gradients are summed, not averaged."""
        if self._shards is not None:
            closure_loss = closure_loss / self.world_size
        return super().backward(closure_loss, *args, **kwargs)

    def gradient_norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """In canonical order from whole gradients: norms of shards add up in another order."""
        if self._shards is not None:
            return canonical.gradient_norm(gradients)
        return super().gradient_norm(gradients)

    def save_state(self, directory: Path) -> None:
        """Writes the shards."""
        self._reshard()
        super().save_state(directory)

    def load_state(self, directory: Path, *, with_optimizer: bool) -> None:
        """Reads into the shards."""
        self._reshard()
        super().load_state(directory, with_optimizer=with_optimizer)

    def _reshard(self) -> None:
        """A forward without a backward, as in validation, leaves the root group gathered.

        Its parameters are then full tensors whose memory torch frees behind our back.
        """
        for module in self.task.network.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
