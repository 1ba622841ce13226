"""What the watchers of all ranks tell each other, through a TCPStore and without any collective.

Each watcher has a connection of its own to the store at which the process group meets, so that a
main thread that blocks in another one never holds it up. Under torchrun the store lives in the
agent and survives every rank; elsewhere rank 0's process serves it.

torchrun keeps its store when it starts ranks again, so that the keys begin with the attempt. Of
process groups it does not say so: gloo would find the addresses of the ranks that are gone, and end
with "connectFullMesh failed". From the second attempt on they meet at a new store.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from llm_train.runtime.launch import Launch

if TYPE_CHECKING:
    from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
    from torch._C._distributed_c10d import Store

_NOTHING = "-"


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How far a rank has come, as its own watcher sees it.

    Attributes:
        passed: boundaries that its main thread has passed.
        marks: places that its main thread has come by, boundaries among them.
        phase: what it is doing.
        step: optimizer steps done.
        quiet: seconds since the last mark, without those in which the process was stopped.
        beat: number of this report.
        over: whether the run has ended on this rank.
    """

    passed: int = 0
    marks: int = 0
    phase: str = "start-up"
    step: int = 0
    quiet: float = 0.0
    beat: int = 0
    over: bool = False


class Peers:
    """The ranks of a run, of which this process is one.

    Args:
        store: a connection of its own.
        rank: of this process.
        ranks: how many there are.
        served: what must live as long as this, for others to meet at.
    """

    def __init__(self, store: Store, rank: int, ranks: int, served: Store | None = None) -> None:
        self._store, self.rank, self.ranks = store, rank, ranks
        self._served = served
        store.compare_set("wish", "", _NOTHING)

    def report(self, standing: Standing) -> None:
        """Publishes how far this rank has come."""
        self._store.set(f"standing/{self.rank}", json.dumps(asdict(standing)))

    def standings(self) -> list[Standing]:
        """How far all ranks have come; empty until all of them have joined."""
        keys = [f"standing/{rank}" for rank in range(self.ranks)]
        if not self._store.check(keys):
            return []
        return [Standing(**json.loads(text)) for text in self._store.multi_get(keys)]

    def wish(self, number: int = 0) -> int:
        """The signal that any rank was sent first; publishes ``number``, if there was none."""
        value = str(number) if number else _NOTHING
        found = self._store.compare_set("wish", _NOTHING, value).decode()
        return 0 if found == _NOTHING else int(found)

    def agree(self, passed: int) -> int | None:
        """The most boundaries that any frozen rank has passed; None until all have said so.

        Rank 0 alone collects, so that a thousand ranks ask for a thousand keys once.
        """
        keys = [f"frozen/{rank}" for rank in range(self.ranks)]
        self._store.set(keys[self.rank], str(passed))
        if self.rank == 0 and self._store.check(keys):
            self._store.set("target", str(max(map(int, self._store.multi_get(keys)))))
        return int(self._store.get("target")) if self._store.check(["target"]) else None


def meet(
    launch: Launch, environment: ClusterEnvironment, *, rank: int, ranks: int, timeout: timedelta
) -> Peers:
    """Connects to the store of the run, and sees to it that process groups have a fresh one.

    Args:
        launch: who started this process.
        environment: knows where the ranks meet.
        rank: of this process.
        ranks: how many there are.
        timeout: how long to wait for rank 0.
    """
    from torch._C._distributed_c10d import PrefixStore, TCPStore

    def connect(port: int, *, serves: bool) -> TCPStore:
        # Shared with the process group's, which this process serves at the same port.
        return TCPStore(
            environment.main_address,
            port,
            is_master=serves,
            timeout=timeout,
            wait_for_workers=False,
            multi_tenant=True,
        )

    served = connect(environment.main_port, serves=rank == 0 and not launch.agent_store)
    store = PrefixStore(f"llm_train/{launch.attempt}", served)
    if launch.agent_store and launch.attempt:
        if rank == 0:
            served = connect(0, serves=True)
            store.set("port", str(served.port))
        os.environ["MASTER_PORT"] = store.get("port").decode()
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
    return Peers(store, rank, ranks, served)
