"""Finds out who started this process and as which rank; no other file reads launchers' variables.

torchrun and srun each describe a process's rank in variables of their own, and a process of a
torchrun that srun started sees both.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What the launcher decided.

    Attributes:
        kind: who started the processes; none if there was no launcher, or if Lightning starts them.
        ranks: number of processes.
        local_ranks: number of processes on each node.
        nodes: number of nodes with processes.
        even: whether every node has the same number of processes, which everything here requires.
        rank: this process's number among all processes.
        local_rank: this process's number on its node.
        node: number of this process's node.
        attempt: how often the launcher has started the ranks before.
        agent_store: whether the launcher serves the store at which the ranks meet.
    """

    kind: Literal["none", "torchrun", "srun"] = "none"
    ranks: int = 1
    local_ranks: int = 1
    nodes: int = 1
    even: bool = True
    rank: int = 0
    local_rank: int = 0
    node: int = 0
    attempt: int = 0
    agent_store: bool = False

    @property
    def per_node_option(self) -> str:
        """The launcher's option that sets the number of processes on a node."""
        return "--ntasks-per-node" if self.kind == "srun" else "--nproc-per-node"

    @property
    def nodes_option(self) -> str:
        """The launcher's option that sets the number of nodes."""
        return "--nodes" if self.kind == "srun" else "--nnodes"


def find_launch(environment: Mapping[str, str] = os.environ) -> Launch:
    """Reads what the launcher left in the environment.

    It never raises an error, because the code that reports errors calls it, too.

    >>> find_launch({}).kind
    'none'
    >>> step = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2", "SLURM_PROCID": "3"}
    >>> launch = find_launch(step)
    >>> launch.kind, launch.ranks, launch.local_ranks, launch.rank
    ('srun', 4, 2, 3)
    >>> find_launch({**step, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}).kind
    'none'
    """

    def number(name: str, default: int = 0) -> int:
        return int(environment.get(name, default))

    # torchrun comes first: inside a SLURM job it is torchrun that started this process.
    if "TORCHELASTIC_RUN_ID" in environment:
        ranks, local_ranks = number("WORLD_SIZE", 1), number("LOCAL_WORLD_SIZE", 1)
        nodes = number("GROUP_WORLD_SIZE", ranks // local_ranks)
        return Launch(
            kind="torchrun",
            ranks=ranks,
            local_ranks=local_ranks,
            nodes=nodes,
            even=nodes * local_ranks == ranks,
            rank=number("RANK"),
            local_rank=number("LOCAL_RANK"),
            node=number("GROUP_RANK"),
            attempt=number("TORCHELASTIC_RESTART_COUNT"),
            agent_store=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        )
    # A batch script, which nothing launched, sees the variables of the job, so only those of the
    # step count. A step of one task (the shell of ``salloc`` or of ``srun --pty bash``) launched
    # nothing either, so the configuration sets the number of ranks, as on a machine without SLURM.
    if number("SLURM_STEP_NUM_TASKS", 1) > 1:
        ranks, nodes = number("SLURM_STEP_NUM_TASKS"), number("SLURM_STEP_NUM_NODES", 1)
        spread = environment.get("SLURM_STEP_TASKS_PER_NODE", "")  # 4(x2) is even, 4(x2),3 is not
        return Launch(
            kind="srun",
            ranks=ranks,
            local_ranks=ranks // nodes,
            nodes=nodes,
            even=ranks % nodes == 0
            and (not spread or bool(re.fullmatch(r"\d+(\(x\d+\))?", spread))),
            rank=number("SLURM_PROCID"),
            local_rank=number("SLURM_LOCALID"),
            node=number("SLURM_NODEID"),
        )
    # The processes that Lightning starts itself know only their LOCAL_RANK.
    return Launch(rank=number("RANK", number("LOCAL_RANK")), local_rank=number("LOCAL_RANK"))
