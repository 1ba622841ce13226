"""Replicated parameters, gradients averaged once per optimizer step."""

import inspect
import math
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from llm_train.context import Context, StrategyTraits
from llm_train.trainer.strategy import deterministic
from llm_train.trainer.strategy.base import Strategy
from llm_train.trainer.strategy.cost import Transfer, Workload
from llm_train.trainer.strategy.mesh import MeshShape
from llm_train.trainer.strategy.replicas import Copies


class DDP(Strategy, DDPStrategy):
    """DistributedDataParallel with views into the buckets, not a second copy of the gradients.

    Args:
        bucket_cap_mb: size of a gradient bucket in MiB; larger buckets mean fewer, later
            reductions.
        reduction: fast, or deterministic: gradients are summed in the order of one process, so that
            any number of ranks gives the same bits. All gradients are exchanged after every
            micro-batch, so it is slow: for verification.
        timeout_minutes: how long a collective may wait for a rank.
    """

    words = ("ddp",)

    def __init__(
        self,
        bucket_cap_mb: int = 25,
        reduction: deterministic.Reduction = "fast",
        timeout_minutes: float = 30.0,
    ) -> None:
        super().__init__(
            timeout=timedelta(minutes=timeout_minutes),
            bucket_cap_mb=bucket_cap_mb,
            gradient_as_bucket_view=True,
            **_no_buffer_broadcast(),
        )
        self.reduction = reduction
        self._bucket_bytes = bucket_cap_mb * 2**20
        self._in_order: deterministic.Replicas | None = None
        self._last = True

    def traits(self, ranks: int) -> StrategyTraits:
        """Every rank holds all weights; gradients are final when the whole backward is over."""
        name, hidden = type(self).__name__, self.reduction != "fast"
        return StrategyTraits(name=name, weight_replicas=ranks, hides_gradients=hidden)

    def problems(self, context: Context) -> Iterator[str]:
        """Problems of deterministic reduction."""
        if self.reduction != "fast":
            yield from deterministic.problems(context)

    def configure_ddp(self) -> None:
        """Does not wrap the module for reduction=deterministic: the wrapper has its own order."""
        if self.reduction == "fast":
            super().configure_ddp()
        else:
            self._in_order = deterministic.Replicas(self.task.network.parameters())

    def _setup_model(self, model: nn.Module) -> DistributedDataParallel:
        """On the stream of the forwards, not on Lightning's side stream.

        The wrapper keeps the nodes that accumulate gradients, and with them the stream that it was
        made on: each gradient would wait for that one.
        """
        devices = self.determine_ddp_device_ids()
        return DistributedDataParallel(model, device_ids=devices, **self._ddp_kwargs)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Remembers whether this micro-batch is the step's last."""
        self._last = (batch_idx + 1) % self.task.trainer.accumulate_grad_batches == 0

    def backward(self, closure_loss: Any, *args: Any, **kwargs: Any) -> Any:
        """Sums gradients over ranks itself for reduction=deterministic, outside Lightning."""
        if self._in_order is None:
            return super().backward(closure_loss, *args, **kwargs)
        result = super().backward(closure_loss / self.world_size, *args, **kwargs)
        self._in_order.add(last=self._last)
        return result

    def copies(self) -> Copies | None:
        """Parameters and persistent buffers."""
        return Copies(self.task.network.state_dict()) if self.world_size > 1 else None

    # --- cost -------------------------------------------------------------------------------------

    def transfers(self, work: Workload, mesh: MeshShape) -> list[Transfer]:
        """Every gradient is reduced once a step, in the dtype of its weight, bucket by bucket."""
        size = work.width * sum(work.elements())
        calls = math.ceil(size / self._bucket_bytes)
        return [Transfer.on(mesh, "all-reduce", "replicate", size, calls)]


def _no_buffer_broadcast() -> dict[str, Any]:
    """Rotary tables never differ; torch 2.13 renamed the argument that stops their broadcast."""
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    return {name: False}
