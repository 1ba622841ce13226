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
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

from llm_train.runtime.launch import Launch
from llm_train.runtime.lease import LeaseHolder
from llm_train.runtime.structure import structure

if TYPE_CHECKING:
    from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
    from torch._C._distributed_c10d import Store

_HASTE_SECONDS = 0.05
_served: list[Store] = []  # they live as long as the process
Blame = Literal["failed", "still", "silent", "gone"]


@dataclass(kw_only=True)
class Standing:
    """How far a rank has come, as its own watcher sees it.

    Attributes:
        marks: places that its main thread has come by.
        phase: what it is doing.
        step: optimizer steps done.
        quiet: seconds since the last mark, without those in which the process was stopped.
        where: the innermost line of the main thread; "" while it moves.
        waits: whether the main thread waits for other ranks, as far as its frames show.
        beat: differs from that of the report before.
        over: whether the run has ended on this rank.
    """

    marks: int = 0
    phase: str = "start-up"
    step: int = 0
    quiet: float = 0.0
    where: str = ""
    waits: bool = False
    beat: int = 0
    over: bool = False


@dataclass(frozen=True, kw_only=True)
class Member:
    """A rank's process; without arguments this one.

    Attributes:
        holder: which process it is, and on which host.
        error_file: where torchrun reads why the process ended; "" without torchrun.
    """

    holder: LeaseHolder = field(default_factory=LeaseHolder.here)
    error_file: str = field(default_factory=lambda: os.environ.get("TORCHELASTIC_ERROR_FILE", ""))


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Why the job ends, the same on all ranks.

    Attributes:
        rank: that is to blame; -1 is none.
        kind: failed has raised an error; still does not get on; silent gives no sign of life; gone
            has ended.
        text: one line about it.
    """

    rank: int
    kind: Blame
    text: str


class Peers:
    """The ranks of a run, of which this process is one.

    Args:
        store: a connection of its own.
        rank: of this process.
        ranks: how many there are.
        serves: whether this process serves the store, or the one of the process groups.
        by_first: whether rank 0 serves the store.
    """

    def __init__(
        self,
        store: Store,
        rank: int = 0,
        ranks: int = 1,
        *,
        serves: bool = False,
        by_first: bool = False,
    ) -> None:
        self._store, self.rank, self.ranks = store, rank, ranks
        self.serves, self.by_first = serves, by_first
        self.known: list[Member] = []
        self.report(Standing())  # before others know of this member
        store.set(f"member/{rank}", json.dumps(asdict(Member())))

    def report(self, standing: Standing) -> None:
        """Publishes how far this rank has come."""
        self._store.set(f"standing/{self.rank}", json.dumps(asdict(standing)))

    def standings(self) -> dict[int, Standing]:
        """How far ranks have come: all for rank 0, else it and those on this host."""
        if not self.members:
            return {}
        host = self.members[self.rank].holder.kernel
        hosts = enumerate(member.holder.kernel for member in self.members)
        ranks = [rank for rank, its in hosts if 0 in (self.rank, rank) or its == host]
        found = self._store.multi_get([f"standing/{rank}" for rank in ranks])
        return {r: Standing(**json.loads(text)) for r, text in zip(ranks, found, strict=True)}

    @property
    def members(self) -> list[Member]:
        """The processes; empty until all of them have joined."""
        keys = [f"member/{rank}" for rank in range(self.ranks)]
        if not self.known and self._store.check(keys):
            found = self._store.multi_get(keys)
            self.known = [structure(Member, json.loads(member)) for member in found]
        return self.known

    def blame(self, verdict: Verdict | None = None) -> Verdict | None:
        """The first verdict of any rank; publishes this one, if there was none."""
        found = self._first("verdict", json.dumps(asdict(verdict)) if verdict else "")
        return Verdict(**json.loads(found)) if found else None

    def fail(self, text: str) -> None:
        """Publishes what this rank has raised."""
        self._store.set(f"failed/{self.rank}", text)

    def first_failed(self, text: str, seconds: float) -> bool:
        """Whether rank 0 has raised the same, or does so within ``seconds``."""
        deadline = time.monotonic() + seconds
        while not self._store.check(["failed/0"]):
            if time.monotonic() > deadline:
                return False
            time.sleep(_HASTE_SECONDS)
        return self._store.get("failed/0").decode() == text

    def wish(self, number: int = 0) -> int:
        """The signal that any rank was sent first; publishes ``number``, if there was none."""
        return int(self._first("wish", str(number or "")) or 0)

    def _first(self, key: str, value: str) -> str:
        """What any rank said first; says ``value`` if that is nobody, and "" is nothing."""
        return self._store.compare_set(key, "", value).decode()

    def agree(self, passed: int) -> int | None:
        """The most boundaries that any frozen rank has passed; None until all have said so.

        Rank 0 alone collects, so that a thousand ranks ask for a thousand keys once.
        """
        keys = [f"frozen/{rank}" for rank in range(self.ranks)]
        self._store.set(keys[self.rank], str(passed))
        if self.rank == 0 and self._store.check(keys):
            self._store.set("target", str(max(map(int, self._store.multi_get(keys)))))
        return int(self._store.get("target")) if self._store.check(["target"]) else None


def await_first(launch: Launch, seconds: float) -> None:
    """Returns once rank 0 has joined a run, which it has not refused then, or after ``seconds``."""
    from torch._C._distributed_c10d import PrefixStore, TCPStore

    end, joined = time.monotonic() + seconds, False
    while not joined and time.monotonic() < end:
        time.sleep(0.5)
        with suppress(KeyError, RuntimeError):  # no address is known, or nobody serves there yet
            address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            timeout = timedelta(seconds=seconds)
            store = TCPStore(address, port, timeout=timeout, wait_for_workers=False)
            joined = PrefixStore(f"llm_train/{launch.attempt}", store).check(["member/0"])


def alone() -> Peers:
    """A run of one process."""
    from torch._C._distributed_c10d import HashStore

    return Peers(HashStore())


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

    def connect(port: int, serves: bool) -> TCPStore:
        # Shared with the process group's, which this process serves at the same port.
        return TCPStore(
            environment.main_address,
            port,
            is_master=serves,
            timeout=timeout,
            wait_for_workers=False,
            multi_tenant=True,
        )

    serves = rank == 0 and not launch.agent_store
    store = PrefixStore(f"llm_train/{launch.attempt}", connect(environment.main_port, serves))
    if launch.agent_store and launch.attempt:
        if rank == 0:
            serves, new = True, connect(0, True)
            store.set("port", str(new.port))
            _served.append(new)
        os.environ["MASTER_PORT"] = store.get("port").decode()
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
    peers = Peers(store, rank, ranks, serves=serves, by_first=not launch.agent_store)
    if launch.kind != "none":  # else rank 0 starts the others later
        store.wait([f"member/{rank}" for rank in range(ranks)])
        assert peers.members, "all have joined"
    return peers
