"""Describes ranks that srun started in the form that Lightning expects.

Lightning's own ``SLURMEnvironment`` has three faults. It reads the variables of the job, which
differ from those of the step as soon as a step does not fill its job. It demands
``--ntasks-per-node``. It installs a signal handler that saves and requeues from inside the signal.
This class uses the variables of the step (``runtime/launch.py``) and installs no handler:
``trainer/callbacks/signals.py`` ends the run, and ``scripts/slurm.sbatch`` requeues the job.
"""

import os

from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

from llm_train.runtime.launch import Launch

_FIRST_PORT, _PORTS = 15000, 10000  # below Linux's range of client ports


class Srun(LightningEnvironment):
    """An environment with one process per task of a SLURM step.

    MASTER_ADDR and MASTER_PORT win where they are set. Otherwise the address is that of the step's
    first node, and the port follows from the numbers of the job and the step, so that all ranks
    find the same one.
    """

    def __init__(self, launch: Launch) -> None:
        super().__init__()
        self._launch = launch

    @property
    def creates_processes_externally(self) -> bool:
        """Tells Lightning that it need not start any processes."""
        return True

    @property
    def main_address(self) -> str:
        """The host of rank 0."""
        nodes = os.environ.get("SLURM_STEP_NODELIST", "127.0.0.1")
        return os.environ.get("MASTER_ADDR") or SLURMEnvironment.resolve_root_node_address(nodes)

    @property
    def main_port(self) -> int:
        """The port on which rank 0 listens while the ranks find each other."""
        numbers = (os.environ.get(name, "0") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
        return int(os.environ.get("MASTER_PORT") or _FIRST_PORT + sum(map(int, numbers)) % _PORTS)

    def world_size(self) -> int:
        """Returns the number of ranks, which the launcher has decided."""
        return self._launch.ranks

    def global_rank(self) -> int:
        """Returns this process's number among all processes."""
        return self._launch.rank

    def local_rank(self) -> int:
        """Returns this process's number on its node."""
        return self._launch.local_rank

    def node_rank(self) -> int:
        """Returns the number of this process's node."""
        return self._launch.node
