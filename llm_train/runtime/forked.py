"""Functions in forked processes: their messages and errors, and nothing that outlives the caller.

Forked, because a fork takes milliseconds, needs nothing pickled, and leaves the threads of Rust
libraries to the child: a process that has used them once cannot fork them any more. Not an
executor, because Ctrl-C has to end what runs, and not a pool, which waits forever for a child that
the kernel has killed for its memory.
"""

import ctypes
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import NamedTuple, TypeAlias

from llm_train.errors import LLMTrainError

_PR_SET_PDEATHSIG = 1
Send: TypeAlias = Callable[[object], None]


class _Ended(NamedTuple):
    error: Exception | None


class _ToCaller(logging.Handler):
    """Log lines are the caller's to write: only it knows of a bar on the terminal."""

    def __init__(self, send: Send) -> None:
        super().__init__()
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        record.msg, record.args, record.exc_info = record.getMessage(), None, None
        self._send(record)


def run_forked(
    functions: Sequence[Callable[[Send], None]], idle: Callable[[], None]
) -> Iterator[object]:
    """Runs each function in a process of its own and yields what they send.

    Args:
        functions: each is given a way to send; what is sent must be picklable.
        idle: called about once a second.

    Raises:
        Exception: the first that a function raises; the other processes are killed.
    """
    running: dict[Connection, BaseProcess] = {}
    try:
        for function in functions:
            receiver, process = _start(function)
            running[receiver] = process
        while running:
            wait(list(running), timeout=1.0)
            for receiver in [each for each in running if each.poll()]:
                message = _receive(receiver, running[receiver])
                if isinstance(message, _Ended):
                    running.pop(receiver).join()
                    receiver.close()
                    if message.error is not None:
                        raise message.error
                elif isinstance(message, logging.LogRecord):
                    logging.getLogger(message.name).handle(message)
                else:
                    yield message
            idle()
    finally:
        for receiver, process in running.items():
            process.kill()
            process.join()
            receiver.close()


def _start(function: Callable[[Send], None]) -> tuple[Connection, BaseProcess]:
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(function, sender), daemon=True)
    with warnings.catch_warnings():  # later versions of Python warn of threads, as a bar has one
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    sender.close()
    return receiver, process


def _receive(receiver: Connection, process: BaseProcess) -> object:
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        code = process.exitcode or 0
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"gone with status {code}"
        raise LLMTrainError(
            f"a process of this command was {how}, which the system does when memory runs out; "
            "what is finished is kept, so run the same command again, with fewer workers"
        ) from None


def _child(function: Callable[[Send], None], sender: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller, who has it too, ends what runs
    _end_with_parent()
    lock = threading.Lock()

    def send(message: object) -> None:
        with lock:  # another thread may log
            sender.send(message)

    logging.getLogger().handlers = [_ToCaller(send)]
    try:
        function(send)
        send(_Ended(None))
    except Exception as error:
        try:
            sender.send(_Ended(error))
        except Exception:  # it cannot be pickled
            sender.send(_Ended(RuntimeError(f"{type(error).__name__}: {error}")))


def _end_with_parent() -> None:
    """Whoever is killed takes its processes along, which would go on for nobody."""
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
