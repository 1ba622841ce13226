"""Replicated parameters, gradients averaged once per optimizer step."""

from __future__ import annotations

import inspect
from datetime import timedelta
from typing import Any

from lightning.pytorch.strategies import DDPStrategy
from torch.nn.parallel import DistributedDataParallel

from llm_train.strategy.base import Placement


class DDP(Placement, DDPStrategy):
    """DistributedDataParallel with views into the buckets, not a second copy of the gradients.

    Args:
        bucket_cap_mb: size of a gradient bucket in MiB; larger buckets mean fewer, later
            reductions.
        timeout_minutes: how long a collective may wait for a rank.
    """

    def __init__(self, bucket_cap_mb: int = 25, timeout_minutes: float = 30.0) -> None:
        super().__init__(
            timeout=timedelta(minutes=timeout_minutes),
            bucket_cap_mb=bucket_cap_mb,
            gradient_as_bucket_view=True,
            **_no_buffer_broadcast(),
        )


def _no_buffer_broadcast() -> dict[str, Any]:
    """Rotary tables are the same everywhere; torch renamed the argument that says so in 2.13."""
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    return {name: False}
