"""Which rank is to blame when a run does not get on.

All ranks come by the same marks in the same order. Where one hangs, the others soon wait for it in
a collective, and stand still as well; but they have come further, or they wait in torch's code.
So only the rank that has come least far is judged.

No clock is compared with another: a rank counts for how long *it* saw nothing change, without the
time in which it was itself stopped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llm_train.errors import check_at_least
from llm_train.runtime.lease import LeaseHolder
from llm_train.runtime.watch.peers import Blame, Member, Standing, Verdict

# Where a rank is judged by ``still_seconds``; all else may take as long as a collective may.
STEP, VALIDATION = "a step", "validation"
# Once an end is wanted, a rank that is stopped keeps the others from ending.
_HURRIED_SILENT_SECONDS, _HURRIED_STOPPED_SECONDS = 10.0, 2.0


class Judge:
    """Watches the standings of all ranks.

    Args:
        rank: that judges.
        options: how long ranks may stand still.
        slow_seconds: the same for phases that may be slow.
    """

    def __init__(self, rank: int, options: "WatchOptions", slow_seconds: float) -> None:
        self._rank = rank
        self._options = options
        self._slow = slow_seconds
        self._seen: dict[int, tuple[int, float]] = {}  # the last beat, and since when
        self.suspects: set[int] = set()  # they have ended; perhaps they said so meanwhile

    def look(
        self,
        standings: Mapping[int, Standing],
        members: Sequence[Member],
        *,
        now: float,
        hurry: bool,
    ) -> Verdict | None:
        """The first rank that is to blame, if any.

        Args:
            standings: of all ranks, or of those that this one looks after.
            members: the processes of all ranks.
            now: seconds for which this process has been awake.
            hurry: whether the run is to end.
        """
        for rank, standing in standings.items():
            member = members[rank]
            if standing.over or rank == self._rank:
                continue
            beat, since = self._seen.get(rank, (-1, now))
            if standing.beat != beat:
                since = now
            self._seen[rank] = (standing.beat, since)
            if rank in self.suspects:
                text = "has ended without a word within a second of that"
                return blamed("gone", rank, standing, member, text)
            if member.holder.gone:
                self.suspects.add(rank)
            if now - since > self._patience(member.holder, hurry):
                text = f"has given no sign of life for {now - since:.0f} s"
                return blamed("silent", rank, standing, member, text)
        return self._still(standings, members) if len(standings) == len(members) else None

    def _patience(self, holder: LeaseHolder, hurry: bool) -> float:
        if not hurry:
            return self._options.silent_seconds
        return _HURRIED_STOPPED_SECONDS if holder.stopped else _HURRIED_SILENT_SECONDS

    def _still(
        self, standings: Mapping[int, Standing], members: Sequence[Member]
    ) -> Verdict | None:
        going = [rank for rank, standing in standings.items() if not standing.over]
        if not going:
            return None
        rank = min(going, key=lambda rank: (standings[rank].marks, standings[rank].waits, rank))
        found = standings[rank]
        quick = found.phase in (STEP, VALIDATION)
        if found.quiet <= (min(self._options.still_seconds, self._slow) if quick else self._slow):
            return None
        text = f"has stood still for {found.quiet:.0f} s, at {found.where}"
        return blamed("still", rank, found, members[rank], text)


def blamed(kind: Blame, rank: int, standing: Standing, member: Member, text: str) -> Verdict:
    """One line about a rank, which ends the job."""
    where = f"last seen in {standing.phase} after step {standing.step}"
    line = f"rank {rank} ({member.holder.host}, pid {member.holder.pid}, {where}) {text}"
    return Verdict(rank=rank, kind=kind, text=line)


def cut_off(known: Sequence[Member], why: str, *, by_first: bool) -> Verdict:
    """What it means that the store does not answer.

    Args:
        known: the processes of all ranks, as far as they are known.
        why: what was seen.
        by_first: rank 0 serves it; else torchrun does.
    """
    if not by_first:
        return Verdict(rank=-1, kind="gone", text=f"torchrun cannot be reached: {why}")
    if not known:
        text = f"rank 0 has ended or cannot be reached: {why}"
        return Verdict(rank=-1, kind="gone", text=text)
    text = "has ended without a word" if known[0].holder.gone else why
    return blamed("gone", 0, Standing(phase="the run"), known[0], text)


LEAST_SECONDS = 5


@dataclass(frozen=True, kw_only=True)
class WatchOptions:
    """When a rank counts as lost, which ends the job with the stacks of all ranks.

    Args:
        still_seconds: for how long a rank may not get on between two micro-batches, or two batches
            of a validation. Longer than the slowest callback takes. Starting, the first step,
            which may compile, and saving have the ``timeout_minutes`` of the strategy.
        silent_seconds: for how long a rank's watcher may give no sign of life, because the process
            was stopped or its host was cut off. A process that has ended on the same host is found
            at once.
    """

    still_seconds: float = 300.0
    silent_seconds: float = 60.0

    def __post_init__(self) -> None:
        check_at_least(self, LEAST_SECONDS, "still_seconds", "silent_seconds", prefix="watch.")
