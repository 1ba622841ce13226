"""Hears signals even while the main thread is blocked.

A handler in Python runs when the main thread is next in Python, which in a collective may be never.
The interpreter's own handler, in C, writes the signal's number to a socket at once, and the watcher
reads it there. What is left for the handler in Python is to end the main thread.

SIGUSR1 is notice of a time limit to come, given by a scheduler that starts the run again if it ends
with 128 + SIGUSR1. It never acts at once, and it is ignored until training starts, so that the exit
status says truly that a checkpoint newer than the start was saved.
"""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from select import select
from types import FrameType

OVER = b"\0"  # what no signal is

_AT_ONCE: dict[int, Callable[[int, FrameType | None], object] | signal.Handlers] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
}
# A scheduler signals the whole job and the launcher passes its copy on: one wish, not two.
_IMPATIENCE_SECONDS = 3.0


class Signals:
    """Handlers of this process; they do nothing but when a second signal comes later.

    Attributes:
        leave: the signal by which the main thread is to end as soon as it hears the next one.
    """

    def __init__(self) -> None:
        self.leave = 0
        self._first = 0.0
        self._wake: socket.socket | None = None

    @contextmanager
    def heard(self) -> Iterator[Callable[[float], bytes]]:
        """Installs the handlers; gives a function that waits so many seconds for signals."""
        before = {}
        wake, ear = socket.socketpair()
        with wake, ear:
            wake.setblocking(False)
            self._wake = wake
            if main := threading.current_thread() is threading.main_thread():
                numbers = (*_AT_ONCE, signal.SIGUSR1)
                before = {number: signal.getsignal(number) for number in numbers}
                for number in _AT_ONCE:
                    signal.signal(number, self._handle)
                descriptor = signal.set_wakeup_fd(wake.fileno())
            try:
                yield lambda seconds: _ours(ear, seconds)
            finally:
                self._wake = None
                if main:
                    signal.set_wakeup_fd(descriptor)
                for number, handler in before.items():
                    signal.signal(number, handler)

    def tell(self, what: bytes) -> None:
        """Wakes whoever waits."""
        if self._wake:
            self._wake.send(what)

    def begin(self) -> None:
        """From here on SIGUSR1 ends the run as well."""
        if self._wake and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGUSR1, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.leave:
            left, self.leave = self.leave, 0
            raise SystemExit(128 + left)
        if number not in _AT_ONCE:
            return
        self._first = self._first or time.monotonic()
        if time.monotonic() - self._first > _IMPATIENCE_SECONDS:
            # Not Lightning's handler, which would wait for the other ranks inside the signal.
            signal.signal(number, _AT_ONCE[number])
            signal.raise_signal(number)


def _ours(ear: socket.socket, seconds: float) -> bytes:
    """What comes within so many seconds, without signals that other handlers wait for.

    The interpreter writes those as well: where a loader has workers, SIGCHLD as a compiler ends.
    """
    told = ear.recv(64) if select([ear], [], [], seconds)[0] else b""
    return bytes(number for number in told if number in (*OVER, *_AT_ONCE, signal.SIGUSR1))


def _forget() -> None:
    # A loader's worker is a copy of this process, and its signals are not the run's.
    with suppress(ValueError):
        signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_forget)
