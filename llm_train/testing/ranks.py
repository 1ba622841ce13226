"""Several real processes on this machine, joined by gloo, for tests of distributed code."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn


def run_ranks(function: Callable[..., Any], world_size: int, *arguments: Any) -> list[Any]:
    """Calls ``function(rank, *arguments)`` in ``world_size`` processes with a gloo group.

    Args:
        function: importable by name; its result must be picklable with ``torch.save``.
        world_size: number of processes.
        *arguments: passed on to every rank.

    Returns:
        What each rank returned, in order of rank.
    """
    with tempfile.TemporaryDirectory() as folder:
        spawn(  # type: ignore[no-untyped-call]
            _rank_main, (world_size, folder, function, arguments), nprocs=world_size
        )
        results = [Path(folder) / f"result-{rank}.pt" for rank in range(world_size)]
        return [torch.load(path, weights_only=False) for path in results]


def _rank_main(
    rank: int, world_size: int, folder: str, function: Callable[..., Any], arguments: Sequence[Any]
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size
    )
    try:
        torch.save(function(rank, *arguments), Path(folder) / f"result-{rank}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()


def llm_train(
    *arguments: str,
    ranks: int = 0,
    cwd: Path | None = None,
    check: bool = True,
    timeout: float = 300,
) -> subprocess.CompletedProcess[str]:
    """Runs the command line in a process of its own, under torchrun if ``ranks`` is given."""
    done = subprocess.run(
        command(*arguments, ranks=ranks),
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if check and done.returncode:
        raise AssertionError(f"exit {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def command(*arguments: str, ranks: int = 0) -> list[str]:
    """The argument vector of one run of the command line."""
    if not ranks:
        return [sys.executable, "-m", "llm_train", *arguments]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
    return [*launcher, "--master-port", str(free_port()), "-m", "llm_train", *arguments]


def environment() -> dict[str, str]:
    """This process's environment with one thread per rank."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def free_port() -> int:
    """A TCP port of the loopback interface that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
