"""One real step of the configured run on its devices, and what its ranks can exchange."""

import time
from collections.abc import Iterator

import lightning.pytorch as pl
import torch
import torch.distributed as dist

from llm_train.context import Finding
from llm_train.run.training import rehearse
from llm_train.run_state import task_of
from llm_train.runtime.devices import KINDS
from llm_train.settings import Settings
from llm_train.trainer.callbacks.base import EachStep
from llm_train.trainer.callbacks.metrics import memory

_ROUNDS = 5
_SLOW_BYTES_PER_SECOND = {"cuda": 1e9}  # of an all-reduce; no link between GPUs is slower


class _FirstStep(EachStep):
    """Measures an all-reduce before the first step, and ends the run after it."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.seconds = self.loss = self.peak_gib = self.bandwidth = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Everything is built."""
        if trainer.world_size > 1:
            self.bandwidth = all_reduce(trainer.strategy.root_device)
        self.began = time.perf_counter()

    def on_step_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reads what the step gave."""
        nats, tokens = task_of(pl_module).run_state.sums.tolist()
        self.seconds, self.loss = time.perf_counter() - self.began, nats / max(tokens, 1.0)
        self.peak_gib = memory(trainer.strategy.root_device)["memory/peak_gib"]
        trainer.should_stop = True
        trainer.limit_val_batches = 0


def one_step(settings: Settings) -> Iterator[Finding]:
    """Forward, backward and update of one global batch, collectives included."""
    first = _FirstStep()
    try:
        rehearse(settings, first)
    except Exception as error:  # whatever a library raises, the run would end with it
        text = " ".join(f"{type(error).__name__}: {error}".split())[:400]
        remedy = "see docs/troubleshooting.md"
        if isinstance(error, torch.OutOfMemoryError):
            remedy = "lower batch.per_device, or ask llm-train plan what fits"
        yield Finding("one step", text, "failed", remedy)
        return
    if first.bandwidth:
        kind, rate = settings.accelerator.type, first.bandwidth
        slow = rate < _SLOW_BYTES_PER_SECOND.get(kind, 0.0)
        text = f"all-reduce over {settings.world_size} ranks: {rate / 1e9:.2f} GB/s bus bandwidth"
        remedy = "look at NCCL_DEBUG=INFO for the interface taken (docs/troubleshooting.md)"
        yield Finding("collectives", text, "warning" if slow else "ok", remedy * slow)
    text = f"loss {first.loss:.4f} in {first.seconds:.1f} s, peak memory {first.peak_gib:.2f} GiB"
    yield Finding("one step", f"{text} (the first step is slower than others)")


def all_reduce(device: torch.device) -> float:
    """Bus bandwidth in bytes per second: what a ring sends, 2 (n - 1) / n of the tensor each."""
    pinned = KINDS[device.type].pinned
    tensor = torch.zeros((256 if pinned else 4) << 18, device=device)  # 2**20 bytes times that
    dist.all_reduce(tensor)  # the first one connects
    dist.barrier()
    tensor[0].item()
    began = time.perf_counter()
    for _ in range(_ROUNDS):
        dist.all_reduce(tensor)
    tensor[0].item()
    ranks, size = dist.get_world_size(), 4 * tensor.numel()
    return 2 * (ranks - 1) / ranks * size * _ROUNDS / (time.perf_counter() - began)
