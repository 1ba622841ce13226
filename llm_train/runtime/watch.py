"""A thread alongside training that hears signals and ends all ranks at the same place.

The main threads of all ranks pass the same boundaries: the end of every optimizer step and the
begin of every validation batch. When a rank gets a signal, every watcher freezes its own counter
and says how many boundaries its main thread has passed. The most that any has passed is where all
end: a main thread that comes to a boundary while its counter is frozen waits for that number, goes
on if it has passed fewer, and else ends there. Main threads wait for watchers only and watchers for
nobody, so that ranks which are blocked in a collective, or whose hosts run ahead of their devices,
cannot wait in a circle. No collective is needed, and a boundary costs a lock that nobody holds.

A signal that comes before the first step ends the processes at once: there is nothing to save.

SIGUSR1 is notice of a time limit to come, given by a scheduler that starts the run again if it ends
with 128 + SIGUSR1. It never acts at once, and it is ignored until training starts, so that the exit
status says truly that a checkpoint newer than the start was saved.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from select import select
from types import FrameType

from llm_train.runtime.watch_peers import Peers

BEAT_SECONDS = 1.0
_OVER = b"\0"
_HASTE_SECONDS = 0.02  # between two looks while main threads wait
_LEAVE_SECONDS = 3.0  # what a process has to end in by itself

_AT_ONCE: dict[int, Callable[[int, FrameType | None], object] | signal.Handlers] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
}
# A scheduler signals the whole job and the launcher passes its copy on: one wish, not two.
_IMPATIENCE_SECONDS = 3.0


class Watch:
    """Watches a run; until ``running``, it lets every boundary pass.

    Attributes:
        number: of the signal that asked for an end; 0 is none.
        passed: boundaries that the main thread has passed.
    """

    def __init__(self) -> None:
        self.number = 0
        self.passed = 0
        self._peers: Peers | None = None
        self._thread: threading.Thread | None = None
        self._turn = threading.Condition()
        self._frozen = False
        self._target: int | None = None
        self._leaving = False
        self._first = 0.0

    # --- the main thread --------------------------------------------------------------------------

    @contextmanager
    def running(self, peers: Peers | None) -> Iterator[None]:
        """Watches while the context lasts.

        Args:
            peers: the other ranks; None where there are none.
        """
        self._peers, main = peers, threading.current_thread() is threading.main_thread()
        wake, heard = socket.socketpair()
        with wake, heard:
            for end in (wake, heard):
                end.setblocking(False)
            self._thread = threading.Thread(target=self._watch, args=(heard,), daemon=True)
            before = {n: signal.signal(n, self._handle) for n in _AT_ONCE} if main else {}
            # The interpreter writes a signal's number here even while the main thread is blocked
            # in C, in a collective for instance, so that no handler in Python can run.
            descriptor = signal.set_wakeup_fd(wake.fileno()) if main else -1
            self._thread.start()
            try:
                yield
            finally:
                if main:
                    signal.set_wakeup_fd(descriptor)
                wake.send(_OVER)
                self._thread.join(_LEAVE_SECONDS)
                for number, handler in before.items():
                    signal.signal(number, handler)

    def begin(self) -> None:
        """Passes the first boundary: training starts.

        Raises:
            SystemExit: all ranks end before any of them has begun.
        """
        if self._thread and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGUSR1, self._handle)
        if self.boundary():
            self._leaving = False
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

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Runs in the main thread, when that is next in Python; the watcher has heard before."""
        if self._leaving:
            self._leaving = False
            raise SystemExit(128 + self.number)
        if number not in _AT_ONCE:
            return
        self._first = self._first or time.monotonic()
        if time.monotonic() - self._first > _IMPATIENCE_SECONDS:
            # Not Lightning's handler, which would wait for the other ranks inside the signal.
            signal.signal(number, _AT_ONCE[number])
            signal.raise_signal(number)

    # --- the watcher ------------------------------------------------------------------------------

    def _watch(self, heard: socket.socket) -> None:
        while True:
            deciding = self._frozen and self._target is None
            select([heard], [], [], _HASTE_SECONDS if deciding else BEAT_SECONDS)
            with suppress(BlockingIOError):
                told = heard.recv(64)
                if _OVER in told:
                    return
                self.number = self.number or told[0]
            if self._peers and self._target is None:
                self.number = self._peers.wish(self.number)
            if self.number and self._target is None:
                self._decide()

    def _decide(self) -> None:
        with self._turn:
            self._frozen = True
            self._turn.notify_all()
        target = self.passed if self._peers is None else self._peers.agree(self.passed)
        if target is None:
            return
        with self._turn:
            self._target = target
            self._turn.notify_all()
        if target == 0:
            self._leaving = True
            os.kill(os.getpid(), self.number)  # for the handler to raise in the main thread
            threading.Timer(_LEAVE_SECONDS, os._exit, [128 + self.number]).start()


def _forget() -> None:
    # A loader's worker is a copy of this process, and its signals are not the run's.
    with suppress(ValueError):
        signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_forget)
