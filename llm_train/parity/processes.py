"""The command line in processes of its own, under torchrun where there are ranks."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from lightning.fabric.plugins.environments.lightning import find_free_network_port

Launcher = Callable[[Sequence[str], int, Path], bool]
"""Runs the command line with arguments on so many ranks, with a log; says whether it succeeded."""


def command(*arguments: str, ranks: int = 0) -> list[str]:
    """The argument vector of one run of the command line; 0 ranks: one process, no launcher."""
    if not ranks:
        return [sys.executable, "-m", "llm_train", *arguments]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
    port = str(find_free_network_port())  # torchrun's own default serves one run a machine
    return [*launcher, "--master-port", port, "-m", "llm_train", *arguments]


def environment() -> dict[str, str]:
    """This process's environment with one thread per rank."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


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
