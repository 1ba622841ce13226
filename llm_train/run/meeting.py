"""How the ranks of a run meet before it, and part after it."""

import os
import time
from datetime import timedelta

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import ParallelStrategy
from torch.distributed.constants import default_pg_timeout

from llm_train.runtime.lease import Lease
from llm_train.runtime.watch.ending import RECORDER
from llm_train.runtime.watch.peers import Peers, alone, meet
from llm_train.runtime.watch.thread import Watched
from llm_train.settings import Settings

_LET_GO_SECONDS = 0.2  # what a thread may need to be scheduled on a busy machine


def watched(settings: Settings, trainer: pl.Trainer, lease: Lease) -> Watched:
    """What the watcher looks after; the ranks meet here, before they have a process group."""
    timeout = settings.strategy.timeout or default_pg_timeout
    return Watched(
        peers=alone() if trainer.world_size == 1 else _peers(settings, trainer, timeout),
        folder=settings.run_dir,
        options=settings.watch,
        slow_seconds=timeout.total_seconds(),
        release=lease.release,
    )


def _peers(settings: Settings, trainer: pl.Trainer, timeout: timedelta) -> Peers:
    strategy = settings.strategy
    assert isinstance(strategy, ParallelStrategy), "there are several ranks"
    environment = strategy.cluster_environment
    assert environment is not None, "the Trainer connects it"
    if settings.accelerator.type == "cuda":
        os.environ.setdefault(RECORDER, "2000")  # collectives
    return meet(
        settings.launch,
        environment,
        rank=trainer.global_rank,
        ranks=trainer.world_size,
        timeout=timeout,
    )


def leave_process_group(trainer: pl.Trainer) -> None:
    """Ends communication before the interpreter shuts down, which gloo's threads could crash.

    DTensor's caches hold the mesh, and the mesh its groups, so that gloo's threads outlive
    ``destroy_process_group``. Such a thread may have finished its last work and wait for the GIL to
    drop a tensor. If the interpreter begins to shut down meanwhile, the thread is made to exit
    inside a C++ destructor, and the process dies with "terminate called without an active
    exception".
    """
    if torch.distributed.is_initialized():
        # Nobody leaves while others may still be served by its process.
        torch.distributed.all_reduce(torch.zeros(1, device=trainer.strategy.root_device))
        torch.distributed.destroy_process_group()
        time.sleep(_LET_GO_SECONDS)  # this releases the GIL, so that such a thread can finish
