"""A strategy: DDP that sends gradients in bfloat16 through a hook of torch's.

Half the bytes travel, and sums over ranks are rounded to 8 bits of mantissa. There is no
``from __future__ import annotations`` here, because torch compares the hook's annotations.
"""

from dataclasses import replace

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from llm_train.trainer.strategy import DDP, MeshShape
from llm_train.trainer.strategy.cost import Transfer, Workload


def in_bfloat16(
    group: dist.ProcessGroup, bucket: dist.GradBucket
) -> torch.futures.Future[torch.Tensor]:
    """Calls torch's hook, which by its own name torch admits with NCCL only; gloo can do it too."""
    return bf16_compress_hook(group, bucket)


class Compressed(DDP):
    """DDP with gradients rounded to bfloat16 while they are summed.

    Args:
        bucket_cap_mb: size of a gradient bucket in MiB before it is rounded.
    """

    def __init__(self, bucket_cap_mb: int = 25) -> None:
        super().__init__(bucket_cap_mb=bucket_cap_mb)

    def configure_ddp(self) -> None:
        """Registers the hook on the wrapper that Lightning makes."""
        super().configure_ddp()
        assert isinstance(self.model, DistributedDataParallel)
        self.model.register_comm_hook(None, in_bfloat16)

    def transfers(self, work: Workload, mesh: MeshShape) -> list[Transfer]:
        """Tells the planner that 2 bytes of a gradient are sent in place of ``work.width``."""
        whole = super().transfers(work, mesh)
        return [replace(each, whole=each.whole * 2 / work.width) for each in whole]
