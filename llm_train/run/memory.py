"""A device whose memory does not suffice for a micro-batch: one line, or half of it next time.

When a rank runs out, the others are in a collective, and what its allocator holds in pieces would
stay in the process. So nothing is tried again in place. The job ends, a file in the run directory
says which micro-batch to take instead, and whoever starts the job again, torchrun or a scheduler or
a person, goes on from the last checkpoint with more accumulation: the same samples in each step,
and losses that differ by rounding only.
"""

import json
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import lightning.pytorch as pl
import torch

from llm_train.errors import LLMTrainError
from llm_train.settings import Settings

FILE_NAME = "micro_batch.json"
# What else says so: cuBLAS, the allocator of CPUs, and the driver.
_SAID = re.compile(r"out of memory|ALLOC_FAILED|DefaultCPUAllocator")
# Lightning's functions in which memory is held in proportion to the micro-batch.
_OF_THE_BATCH = {"training_step", "validation_step", "backward"}


class OutOfMemory(LLMTrainError):
    """Reports a device that is too small.

    Args:
        message: one line.
        again: whether a new start will take a smaller micro-batch.
    """

    def __init__(self, message: str, *, again: bool = False) -> None:
        super().__init__(message)
        self.again = again


def fitted(settings: Settings) -> Settings:
    """The settings with the micro-batch that an earlier process left, if it is for them."""
    path, batch = settings.run_dir / FILE_NAME, settings.batch
    if batch.on_out_of_memory == "raise" or not path.is_file():
        return settings
    try:
        found = json.loads(path.read_text("utf-8"))
        smaller = int(found["instead"])
        meant = found["per_device"] == batch.per_device and batch.per_device % smaller == 0
    except (ValueError, LookupError, TypeError, ArithmeticError) as error:
        raise LLMTrainError(f"{path} is damaged ({error}); remove it") from None
    return replace(settings, batch=replace(batch, per_device=smaller)) if meant else settings


class SameMicroBatch(pl.Callback):
    """Refuses a start in which the file has reached the nodes of some ranks only."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Compares all ranks, so that all refuse."""
        own, device = trainer.accumulate_grad_batches, trainer.strategy.root_device
        found = trainer.strategy.reduce(torch.tensor([own, -own], device=device), reduce_op="max")
        most, least = found[0].item(), -found[1].item()
        if most != least:
            raise LLMTrainError(
                f"some ranks would make {least} micro-batches a step and others {most}: "
                f"{FILE_NAME} of the run directory has not reached all nodes yet; start again"
            )


@contextmanager
def explained(settings: Settings, trainer: pl.Trainer) -> Iterator[None]:
    """Turns a lack of memory into one line, and leaves a smaller micro-batch where it is asked for.

    Args:
        settings: of the run.
        trainer: that trains.

    Raises:
        OutOfMemory: a device is too small.
    """
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, torch.OutOfMemoryError) or _SAID.search(str(error))):
            raise
        now = settings.batch.per_device
        # torch adds much advice
        reason = ". ".join(" ".join(str(error).split()).split(". ")[:2]).rstrip(".")
        where = f"rank {trainer.global_rank} ran out of memory in step {trainer.global_step + 1}"
        line = f"{where} with batch.per_device={now}: {reason}; "
        smaller = next((n for n in range(now // 2, 0, -1) if now % n == 0), 0)
        frames = {frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)}
        if not smaller or not frames & _OF_THE_BATCH:
            why = (
                "nothing shows that a smaller micro-batch would help" if smaller else "none is less"
            )
            raise OutOfMemory(f"{line}{why}: see docs/troubleshooting.md#out-of-memory") from error
        if settings.batch.on_out_of_memory == "raise":
            raise OutOfMemory(
                f"{line}set batch.per_device={smaller}, which changes no batch of a step, or "
                "batch.on_out_of_memory=halve; see docs/troubleshooting.md#out-of-memory"
            ) from error
        path = settings.run_dir / FILE_NAME
        configured = settings.plain.get("batch", {}).get("per_device", now)
        found = {"per_device": configured, "instead": smaller, "because": where}
        own = path.with_name(f".{FILE_NAME}-{trainer.global_rank}")  # often all ranks run out
        own.write_text(json.dumps(found) + "\n", encoding="utf-8")
        own.replace(path)
        raise OutOfMemory(
            f"{line}start again with --resume auto, which takes {smaller} ({path})", again=True
        ) from error
