"""Which signals the watcher hears: those that end a run, and no others that somebody handles."""

from __future__ import annotations

import os
import signal

from llm_train.runtime.watch.wakeup import OVER, Signals


def test_the_end_of_a_compilers_process_is_no_wish_to_stop() -> None:
    """A loader with workers handles SIGCHLD, and the interpreter then writes it like any other."""
    signals = Signals()
    before = signal.signal(signal.SIGCHLD, lambda *_: None)
    try:
        with signals.heard() as heard:
            os.kill(os.getpid(), signal.SIGCHLD)
            assert heard(1.0) == b""
            os.kill(os.getpid(), signal.SIGTERM)
            assert heard(1.0) == bytes([signal.SIGTERM])
            signals.tell(OVER)
            assert heard(1.0) == OVER
    finally:
        signal.signal(signal.SIGCHLD, before)
