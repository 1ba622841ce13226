"""How long the main thread has stood still, and where."""

import sys
import threading
import time
import traceback

_MOST_SECONDS = 2.0  # between two readings; whatever is more, the process was stopped for
_LOOK_SECONDS = 2.0  # of standing still, after which it is asked where
_LIBRARIES = ("/torch/", "/lightning/", "/threading.py")
_DEBUGGERS = ("pdb.py", "bdb.py", "pydevd.py")


class Clock:
    """Counts the seconds in which this process was awake.

    Attributes:
        awake: seconds so far.
        quiet: seconds since the marks last changed.
        where: the innermost line of the main thread; "" while it moves.
        waits: whether it waits for other ranks, as far as its frames show.
    """

    def __init__(self) -> None:
        self.awake = self.quiet = 0.0
        self.where, self.waits = "", False
        self._last = time.monotonic()
        self._marks = -1

    def read(self, marks: int) -> None:
        """Brings everything up to date."""
        now = time.monotonic()
        passed, self._last = min(now - self._last, _MOST_SECONDS), now
        self.awake += passed
        self.quiet = self.quiet + passed if marks == self._marks else 0.0
        self._marks = marks
        if self.quiet < _LOOK_SECONDS:
            self.where, self.waits = "", False
            return
        frames = main_frames()
        if any(frame.filename.endswith(_DEBUGGERS) for frame in frames):
            self.quiet = 0.0  # somebody is looking
        # DistributedDataParallel waits inside the backward pass, where there is no frame of it.
        self.waits = any(
            "torch/distributed/" in frame.filename or frame.name == "_engine_run_backward"
            for frame in frames[-8:]
        )
        own = [f for f in frames if not any(part in f.filename for part in _LIBRARIES)]
        last = (own or frames)[-1]
        self.where = f"{last.filename}:{last.lineno} in {last.name}"


def main_frames() -> traceback.StackSummary:
    """Where the main thread is, the innermost frame last."""
    identity = threading.main_thread().ident or 0
    return traceback.extract_stack(sys._current_frames().get(identity))
