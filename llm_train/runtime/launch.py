"""Who started this process, and as one of how many: only this file reads launchers' variables.

torchrun and srun each tell a process its place in variables of their own, and torchrun started by
srun leaves both. torchrun then wins, since it started the process. Within SLURM the variables of
the *step* count: those of the job are also there in a batch script, which nothing launched. A step
of one task, such as the shell of ``salloc`` or of ``srun --pty bash``, launched nothing either:
there the configuration says how many ranks there are, as on a machine without SLURM.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What the launcher decided.

    Attributes:
        kind: who started the processes; none: nobody did, or Lightning will.
        ranks: processes in all.
        local_ranks: processes on each node.
        nodes: nodes with processes.
        even: every node has as many; nothing here works otherwise.
        rank: this process's number among all.
        local_rank: this process's number on its node.
        node: number of this process's node.
    """

    kind: Literal["none", "torchrun", "srun"] = "none"
    ranks: int = 1
    local_ranks: int = 1
    nodes: int = 1
    even: bool = True
    rank: int = 0
    local_rank: int = 0
    node: int = 0

    @property
    def per_node_option(self) -> str:
        """The launcher's option for the number of processes on a node."""
        return "--ntasks-per-node" if self.kind == "srun" else "--nproc-per-node"

    @property
    def nodes_option(self) -> str:
        """The launcher's option for the number of nodes."""
        return "--nodes" if self.kind == "srun" else "--nnodes"


def find_launch(environment: Mapping[str, str] = os.environ) -> Launch:
    """Reads what the launcher left in the environment; raises nothing, since errors ask it too.

    >>> find_launch({}).kind
    'none'
    >>> step = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2", "SLURM_PROCID": "3"}
    >>> find_launch(step)
    Launch(kind='srun', ranks=4, local_ranks=2, nodes=2, even=True, rank=3, local_rank=0, node=0)
    >>> find_launch({**step, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}).kind
    'none'
    """

    def number(name: str, default: int = 0) -> int:
        return int(environment.get(name, default))

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
        )
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
    # Copies of the process that Lightning starts know their place by LOCAL_RANK alone.
    return Launch(rank=number("RANK", number("LOCAL_RANK")), local_rank=number("LOCAL_RANK"))
