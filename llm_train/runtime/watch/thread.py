"""A thread alongside training that hears signals and ends all ranks at the same place.

The main threads of all ranks pass the same boundaries: the end of every optimizer step and the
begin of every validation batch. When a rank gets a signal, every watcher freezes its own counter
and says how many boundaries its main thread has passed. The most that any has passed is where all
end: a main thread that comes to a boundary while its counter is frozen waits for that number, goes
on if it has passed fewer, and else ends there. Main threads wait for watchers only and watchers for
nobody, so that ranks which are blocked in a collective, or whose hosts run ahead of their devices,
cannot wait in a circle. No collective is needed, and a boundary costs a lock that nobody holds.

A signal that comes before the first step ends the processes at once: there is nothing to save.

The same thread reports once a second how far this rank has come, and ends the process when a rank
is lost (``verdict.py``, ``ending.py``): whichever rank is to blame is named first.
"""

import os
import re
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from llm_train.errors import LLMTrainError
from llm_train.runtime.watch.clock import Clock
from llm_train.runtime.watch.ending import end, write_error
from llm_train.runtime.watch.peers import Member, Peers, Standing, Verdict
from llm_train.runtime.watch.verdict import Judge, WatchOptions, blamed, cut_off
from llm_train.runtime.watch.wakeup import OVER, Signals

_BEAT_SECONDS = 1.0
_HASTE_SECONDS = 0.02  # between two looks while somebody waits
_LEAVE_SECONDS = 3.0  # what a process has to end in by itself
_JUDGE_SECONDS = 5.0  # what it may take to find out which rank has failed
_SAME_SECONDS = 1.5  # between errors that all ranks raise at the same place
_PART_SECONDS = 5.0

# What the end of one rank looks like on the others.
_BY_OTHERS = re.compile("gloo|nccl|connection|peer|broken pipe|tcpstore|timed out|watchdog", re.I)


@dataclass(frozen=True, kw_only=True)
class Watched:
    """What is watched.

    Attributes:
        peers: all ranks.
        folder: the run directory, for stacks.
        options: how long ranks may stand still.
        slow_seconds: the same for phases that may be slow.
        release: called before the process is ended in the middle.
    """

    peers: Peers
    folder: Path
    options: WatchOptions
    slow_seconds: float
    release: Callable[[], None]


class Watch:
    """Watches a run; until ``running``, it lets every boundary pass.

    Attributes:
        number: of the signal that asked for an end; 0 is none.
        passed: boundaries that the main thread has passed.
    """

    _watched: Watched  # while it is running

    def __init__(self) -> None:
        self.number = 0
        self.passed = 0
        self._signals = Signals()
        self._turn = threading.Condition()
        self._frozen = False
        self._target: int | None = None
        self._leaving = False
        self._here = Standing()
        self._clock = Clock()
        self._verdict: Verdict | None = None
        self._judged = threading.Event()
        self._own = False  # the main thread is about to end with an error of its own
        self._turns = 0  # of the watcher

    def __deepcopy__(self, memo: object) -> "Watch":
        """Lightning's averaging copies the task; the copy trains nothing."""
        return Watch()

    # --- the main thread --------------------------------------------------------------------------

    @contextmanager
    def running(self, watched: Watched) -> Iterator[None]:
        """Watches while the context lasts."""
        self._watched = watched
        several = watched.peers.ranks > 1
        with self._signals.heard() as heard:
            thread = threading.Thread(target=self._watch, args=(heard,), daemon=True)
            thread.start()
            if several:
                threading.Thread(target=self._guard, daemon=True).start()
            try:
                yield
                self._here.over = True
            except Exception as error:
                if several:
                    with suppress(RuntimeError):  # the store has gone first
                        self._failed(error, watched.peers)
                raise
            finally:
                self._signals.tell(OVER)
                thread.join(_PART_SECONDS + _LEAVE_SECONDS)

    def mark(self, phase: str, step: int) -> None:
        """Says that the main thread gets on."""
        self._here.phase, self._here.step = phase, step
        self._here.marks += 1

    def begin(self) -> None:
        """Passes the first boundary: training starts.

        Raises:
            SystemExit: all ranks end before any of them has begun.
        """
        self._signals.begin()
        if self.boundary():
            self._signals.leave = 0
            raise SystemExit(128 + self.number)

    def boundary(self) -> bool:
        """Whether all ranks end here; else the boundary is passed."""
        with self._turn:
            while self._frozen and self._target is None:
                self._turn.wait()
            if self._target is not None and self.passed >= self._target:
                return True
            self.passed += 1
            return False

    def ask(self, number: int) -> None:
        """Ends the run as signal ``number`` would, at the next boundary if no rank is ahead."""
        with self._turn:
            self.number = self.number or number
            self._turn.wait_for(lambda: self._frozen)

    def _failed(self, error: Exception, peers: Peers) -> None:
        """Finds out whose fault an error is; returns if this rank has to say it.

        Raises:
            SystemExit: rank 0 says it.
        """
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if isinstance(error, LLMTrainError):
            error.alone = True
        others = isinstance(error, (RuntimeError, ConnectionError)) and _BY_OTHERS.search(text)
        if not (others and self._judged.wait(_JUDGE_SECONDS)):
            peers.fail(text)
            own = blamed("failed", peers.rank, self._here, Member(), f"has failed: {text}")
            self._verdict = peers.blame(own)
        elif self._verdict and self._verdict.rank != peers.rank:
            time.sleep(_LEAVE_SECONDS + 2 * _JUDGE_SECONDS)  # the watcher ends this process
        self._own = True
        late = self._verdict is not None and self._verdict.rank != peers.rank
        stack = "".join(traceback.format_exception(error))
        write_error(os.environ.get("TORCHELASTIC_ERROR_FILE", ""), text, stack, late=late)
        if peers.rank and peers.first_failed(text, _SAME_SECONDS):
            time.sleep(_SAME_SECONDS)  # torchrun ends all ranks once one of them has ended
            raise SystemExit(2 if isinstance(error, LLMTrainError) else 1) from error
        if peers.serves:
            time.sleep(1.5 * _BEAT_SECONDS)  # for the others to read who has failed

    # --- the watcher ------------------------------------------------------------------------------

    def _watch(self, heard: Callable[[float], bytes]) -> None:
        watched = self._watched
        judge = Judge(watched.peers.rank, watched.options, watched.slow_seconds)
        while not self._leaving:
            hasty = (self._frozen and self._target is None) or judge.suspects
            told = heard(_HASTE_SECONDS if hasty else _BEAT_SECONDS)
            try:
                if OVER in told:
                    return self._part(watched.peers)
                self._hear(told[0] if told else 0, watched.peers)
                if not (self._verdict or self._leaving):
                    self._verdict = self._look(judge, watched.peers)
            except RuntimeError as error:  # of the store
                if self._here.over:
                    return None
                self._cut_off(str(error).splitlines()[0])
            self._turns += 1
            if self._verdict:
                self._judged.set()
                return self._conclude(self._verdict)

    def _guard(self) -> None:
        """Ends the process when the watcher waits for an answer that does not come."""
        clock = Clock()
        while not (self._here.over or self._verdict or self._leaving):
            time.sleep(_BEAT_SECONDS)
            clock.read(self._turns)
            if clock.quiet > self._watched.options.silent_seconds:
                self._conclude(self._cut_off(f"has not answered for {clock.quiet:.0f} s"))

    def _cut_off(self, why: str) -> Verdict:
        peers = self._watched.peers
        self._verdict = cut_off(peers.known, why, by_first=peers.by_first)
        return self._verdict

    def _hear(self, number: int, peers: Peers) -> None:
        """Takes part in the decision on an end, if any rank has asked for one."""
        self.number = self.number or number
        if self._target is not None:
            return
        self.number = peers.wish(self.number)
        if not self.number:
            return
        with self._turn:
            self._frozen = True
            self._turn.notify_all()
        target = peers.agree(self.passed)
        if target is None:
            return
        with self._turn:
            self._target = target
            self._turn.notify_all()
        if target == 0:
            self._leaving = True
            self._signals.leave = self.number
            os.kill(os.getpid(), self.number)  # for the handler to raise in the main thread
            _later(_LEAVE_SECONDS, 128 + self.number)

    def _look(self, judge: Judge, peers: Peers) -> Verdict | None:
        """Says how this rank stands, and judges the others."""
        here, clock = self._here, self._clock
        clock.read(here.marks)
        here.quiet, here.where, here.waits = clock.quiet, clock.where, clock.waits
        here.beat = time.monotonic_ns()
        peers.report(here)
        if verdict := peers.blame():
            return verdict
        standings, hurry = peers.standings(), self.number != 0
        found = judge.look(standings, peers.members, now=clock.awake, hurry=hurry)
        return peers.blame(found) if found else None

    def _conclude(self, verdict: Verdict) -> None:
        """Ends this process, unless its main thread is about to, with an error of its own."""
        if verdict.kind == "failed":
            deadline = time.monotonic() + _LEAVE_SECONDS
            while not self._own and time.monotonic() < deadline:
                time.sleep(_HASTE_SECONDS)
            if self._own:
                return _later(2 * _JUDGE_SECONDS, 1)
        self._watched.release()
        end(verdict, self._watched.peers, self._watched.folder)

    def _part(self, peers: Peers) -> None:
        """Leaves the others, who may still need what this process serves."""
        if not self._here.over:
            return
        peers.report(self._here)
        deadline = time.monotonic() + _PART_SECONDS
        while peers.serves and time.monotonic() < deadline:
            if all(standing.over for standing in peers.standings().values()):
                return
            time.sleep(_HASTE_SECONDS)


def _later(seconds: float, status: int) -> None:
    """Ends the process if it has not ended by itself."""
    timer = threading.Timer(seconds, os._exit, [status])
    timer.daemon = True
    timer.start()
