"""Ranks that srun started, as Lightning wants to be told of them.

Lightning's own ``SLURMEnvironment`` reads the variables of the job, which differ from those of the
step as soon as a step does not fill its job, demands ``--ntasks-per-node``, and brings a signal
handler that saves and requeues from inside the signal. Ours reads the step's
(``runtime/launch.py``) and brings none: ``trainer/callbacks/signals.py`` ends the run, and
``scripts/slurm.sbatch`` requeues the job.
"""

from __future__ import annotations

import os

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

from llm_train.runtime.launch import Launch

_FIRST_PORT, _PORTS = 15000, 10000  # below the range from which Linux picks ports for clients


class Srun(ClusterEnvironment):
    """One process per task of a step.

    MASTER_ADDR and MASTER_PORT win where they are set; else the step's first node, and a port that
    follows from the numbers of job and step, so that all ranks find the same one.
    """

    def __init__(self, launch: Launch) -> None:
        super().__init__()
        self._launch = launch

    @property
    def creates_processes_externally(self) -> bool:
        """Lightning need not start any."""
        return True

    @property
    def main_address(self) -> str:
        """Host of rank 0."""
        nodes = os.environ.get("SLURM_STEP_NODELIST", "127.0.0.1")
        return os.environ.get("MASTER_ADDR") or SLURMEnvironment.resolve_root_node_address(nodes)

    @property
    def main_port(self) -> int:
        """Where rank 0 listens while ranks find each other."""
        numbers = (os.environ.get(name, "0") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
        return int(os.environ.get("MASTER_PORT") or _FIRST_PORT + sum(map(int, numbers)) % _PORTS)

    @staticmethod
    def detect() -> bool:
        """It is chosen by ``run/trainer.py``, never found."""
        return False

    def world_size(self) -> int:
        """Ranks in all."""
        return self._launch.ranks

    def set_world_size(self, size: int) -> None:
        """The launcher decided."""

    def global_rank(self) -> int:
        """This process's number among all."""
        return self._launch.rank

    def set_global_rank(self, rank: int) -> None:
        """The launcher decided."""

    def local_rank(self) -> int:
        """This process's number on its node."""
        return self._launch.local_rank

    def node_rank(self) -> int:
        """Number of this process's node."""
        return self._launch.node
