"""What watches a run on one device: counts waits, and stands in for results where there are none.

The device may be a simulated one, whose kernels compute nothing: what a run reads is then
arbitrary, and a run that read its loss would end at the first log point. Whether kernels compute is
found out by multiplying two matrices. If they do not, ``trainer.strategy.reduce``, through which a
run reads all numbers by which it decides, gives plausible ones, and checkpoints take any number:
memory that no kernel has written may hold an ignored target, whose bits are those of a NaN.
"""

from __future__ import annotations

import sys
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from rehearsal.cells import LOG_EVERY, SAVE_EVERY, VALIDATE_EVERY

from llm_train.checkpoint import dcp

LOUD_STEPS = 3  # the first of a process allocate, compile and capture
PROFILED_FROM = 10
PACKAGES = {"llm_train", "deepspeed", "lightning"}


class Watch(pl.Callback):
    """Counts waits for the device by the line that waits; gives plausible numbers if none are."""

    def __init__(self, *, profiled: bool) -> None:
        self.profiled = profiled
        self.waits: Counter[str] = Counter()
        self.simulated = False
        self._first_step = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Finds out what kind of device this is."""
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
        warnings.filterwarnings("always", "called a synchronizing CUDA operation")
        warnings.showwarning = self._warned
        self.simulated = is_simulated(trainer.strategy.root_device)
        if self.simulated:
            reduce = trainer.strategy.reduce
            trainer.strategy.reduce = lambda *a, **k: plausible(reduce(*a, **k))
            dcp.not_finite = lambda tensors: {}

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Remembers where this process begins."""
        self._first_step = trainer.global_step

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """Sets what holds until the next micro-batch begins."""
        done = trainer.global_step
        step = done + 1  # the one that begins
        quiet = done - self._first_step >= LOUD_STEPS
        quiet = quiet and all((step % LOG_EVERY, step % VALIDATE_EVERY, step % SAVE_EVERY))
        quiet = quiet and done % SAVE_EVERY != 0  # the checkpoint is written when the next begins
        quiet = quiet and step != pl_module.derived.total_steps
        quiet = quiet and not (self.profiled and step >= PROFILED_FROM)
        torch.cuda.set_sync_debug_mode("warn" if quiet else "default")

    def on_train_end(self, *_: Any) -> None:
        """The last validation and checkpoint may wait."""
        torch.cuda.set_sync_debug_mode("default")

    def on_exception(self, *_: Any) -> None:
        """Or the teardown would be counted as well."""
        torch.cuda.set_sync_debug_mode("default")

    def _warned(self, message: Warning | str, category: type[Warning], *where: Any) -> None:
        if "synchronizing CUDA operation" not in str(message):
            print(f"{category.__name__}: {message}", file=sys.stderr)
            return
        frames = traceback.extract_stack()[:-1]
        own = [f for f in frames if PACKAGES & set(Path(f.filename).parts)]
        place = short("{0.filename}:{0.lineno}".format((own or frames)[-1]))
        if place not in self.waits:
            print(f"waits: {place}", *traceback.format_list(frames[-12:]), file=sys.stderr)
        self.waits[place] += 1


def is_simulated(device: torch.device) -> bool:
    """Whether kernels compute nothing."""
    factor = torch.arange(256, dtype=torch.float32).view(16, 16)
    return not torch.equal((factor.to(device) @ torch.eye(16).to(device)).cpu(), factor)


def plausible(result: Any) -> Any:
    """Sums of nats and of tokens are one, and so the loss; nobody wishes to stop, the third number.

    The copy is enqueued like any other and waits for nothing.
    """
    if isinstance(result, torch.Tensor) and result.is_cuda:
        values = torch.zeros(result.shape, dtype=result.dtype, pin_memory=True)
        if values.is_floating_point():
            values.fill_(1).view(-1)[2:3] = 0
        with torch.no_grad():
            result.copy_(values, non_blocking=True)
    return result


def short(place: str) -> str:
    """A file and a line from its package on, wherever that is installed.

    >>> short("/opt/packages/deepspeed/runtime/zero/stage3.py:12")
    'deepspeed/runtime/zero/stage3.py:12'
    """
    parts = Path(place).parts
    names = [at for at, part in enumerate(parts) if part in PACKAGES]
    return "/".join(parts[names[-1] if names else -3 :])
