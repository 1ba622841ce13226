"""Several real processes on this machine, joined by gloo, for tests of distributed code."""

from __future__ import annotations

import subprocess
from pathlib import Path

from llm_train.parity.processes import command, environment, free_port

__all__ = ["command", "environment", "free_port", "llm_train"]


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
