"""Fully sharded data parallelism through torch's ``fully_shard``, on GPUs and on CPUs.

Built on Lightning's ModelParallelStrategy, because its FSDPStrategy cannot clip by norm, reduces in
bf16 under mixed precision and refuses CPUs. Two things are different from stock: the mixed
precision policy keeps fp32 master weights and reduces in fp32, and gradients are reduced on the
last micro-batch of a step only. Without resharding after forward, parameters are also gathered, and
cast, once a step: they stay gathered from the first micro-batch to the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from llm_train.strategy import canonical
from llm_train.strategy.base import Placement


class FSDP(Placement, ModelParallelStrategy):
    """Parameters, gradients and optimizer state sharded over all ranks (ZeRO-3 in torch's own way).

    Args:
        reshard_after_forward: free gathered parameters between forward and backward. Off, they are
            kept and gathered once an optimizer step: more memory, less communication (ZeRO-2).
        reduction: fast, or canonical: gradients are summed in the order of one process, so that any
            number of ranks gives the same bits. They are reduced after every micro-batch, and
            gathered for their norm, so it is slow: for verification.
        timeout_minutes: how long a collective may wait for a rank.
    """

    def __init__(
        self,
        reshard_after_forward: bool = True,
        reduction: canonical.Reduction = "fast",
        timeout_minutes: float = 30.0,
    ) -> None:
        canonical.check_reduction(reduction)
        super().__init__(timeout=timedelta(minutes=timeout_minutes))
        self.reshard_after_forward = reshard_after_forward
        self.reduction = reduction
        self._shards: canonical.Shards | None = None

    @property
    def copy_dtype(self) -> torch.dtype | None:
        """None: fully_shard casts while it gathers."""
        return None

    def setup_environment(self) -> None:
        """Uses every rank for data: Lightning's default would be one per node."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        self._tensor_parallel_size = 1
        super().setup_environment()

    def shard(self, network: nn.Module) -> None:
        """Makes each block one communication group and everything else the root's.

        Embedding and head stay together in the root group: tied weights must share one.
        """
        mesh = self.device_mesh["data_parallel"]
        policy = self._policy()
        blocks: Any = network
        for block in blocks.blocks():
            fully_shard(
                block, mesh=mesh, mp_policy=policy, reshard_after_forward=self.reshard_after_forward
            )
        fully_shard(network, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
        if self.reduction == "canonical":
            self._shards = canonical.Shards(network)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Holds back the reduction of gradients until the last micro-batch of the step."""
        accumulation = self.lightning_module.trainer.accumulate_grad_batches
        network: FSDPModule = self.lightning_module.network
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
        for module in self.lightning_module.network.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def _policy(self) -> MixedPrecisionPolicy:
        if self.precision_plugin.precision in ("bf16-mixed", "bf16-true"):
            return MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        return MixedPrecisionPolicy()
