"""Several real processes on this machine, joined by gloo, for tests of distributed code."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path


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
