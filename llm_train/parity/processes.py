"""The command line in processes of its own, under torchrun where there are ranks."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

Launcher = Callable[[Sequence[str], int, Path], bool]
"""Runs the command line with arguments on so many ranks, with a log; says whether it succeeded."""


def command(*arguments: str, ranks: int = 0) -> list[str]:
    """The argument vector of one run of the command line; 0 ranks: one process, no launcher."""
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


def launch(arguments: Sequence[str], ranks: int, log: Path) -> bool:
    """Runs the command line to its end, with all it says in ``log``."""
    with open(log, "wb") as file:
        done = subprocess.run(
            command(*arguments, ranks=ranks),
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        )
    return done.returncode == 0
