"""Several real processes on this machine, joined by gloo, for tests of distributed code."""

import subprocess
from pathlib import Path

from llm_train.parity.processes import command, environment

__all__ = ["command", "environment", "launched_as", "llm_train"]


def llm_train(
    *arguments: str,
    ranks: int = 0,
    cwd: Path | None = None,
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Runs the command line in a process of its own, under torchrun if ``ranks`` is given."""
    done = subprocess.run(
        command(*arguments, ranks=ranks),
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if check and done.returncode:
        raise AssertionError(f"exit {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def launched_as(launcher: str, rank: int, ranks: int, port: int) -> dict[str, str]:
    """What a launcher tells one of its processes on one node.

    Args:
        launcher: torchrun; srun, one task a rank; or both: torchrun in the only task of a step.
        rank: the process.
        ranks: all of them.
        port: where they meet.
    """
    one, all_ = str(rank), str(ranks)
    step = {
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NAME": "llm-train",
        **dict.fromkeys(("SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "SLURM_STEP_NUM_TASKS"), all_),
        **dict.fromkeys(("SLURM_NODELIST", "SLURM_STEP_NODELIST"), "localhost"),
        **dict.fromkeys(("SLURM_STEP_ID", "SLURM_NODEID"), "0"),
        **dict.fromkeys(("SLURM_PROCID", "SLURM_LOCALID"), one),
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_STEP_TASKS_PER_NODE": all_,
        "MASTER_PORT": str(port),
    }
    if launcher == "srun":
        return step
    agent = {
        **dict.fromkeys(("RANK", "LOCAL_RANK"), one),
        **dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), all_),
        "GROUP_RANK": "0",
        "GROUP_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "fork-server",
    }
    if launcher == "torchrun":
        return agent
    only = dict.fromkeys(("SLURM_PROCID", "SLURM_LOCALID"), "0")
    # Two tasks on two nodes in all, of which this is the first: what torchrun must outdo.
    return {**step, **only, "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "2", **agent}
