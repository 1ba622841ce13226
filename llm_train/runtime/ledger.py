"""Where the wall time of a run goes: each second of a process belongs to exactly one name.

What is unusual: nothing is measured by itself. The ledger switches from name to name, so that the
names add up to the whole, and "steps" is what no other name has claimed. Only the host's clock is
read. On a device the host runs ahead and waits at log points: there it meets the time that the
device took for the steps, and a loader that was slow meanwhile has delayed nobody for as long as
that wait, which is given back to the steps.

Lines are differences and a second apart at least, a thousandth of the life of the process at most:
SIGKILL loses the names of that much, and a run of weeks writes a few thousand lines.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from llm_train.runtime.startup import compile_seconds

LEDGER = "ledger.jsonl"
STEPS, DATA_WAIT, COMPILE = "steps", "data_wait", "compile"
BEGIN, LEFT, END = "begin", "left", "end"
DEVICE = "device"  # the host waits for the device, which makes steps
_LEAST_SECONDS, _SHARE = 1.0, 1e-3  # between two lines


def _nowhere(name: str, step: int, **details: object) -> None:
    """Of a process that trains nothing."""


class Ledger:
    """Adds up seconds by name and writes them down.

    Args:
        write: takes the name of an event, the step and details, as ``log_event`` does.
    """

    def __init__(self, write: Callable[..., None] = _nowhere) -> None:
        self._write = write
        self._now = "start_up/build"
        self._since = self._born = self._written = time.monotonic()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._compiled = compile_seconds()
        self._step = self._steps = 0
        self._begun = False

    def imported(self, seconds: float, prepared: float = 0.0) -> None:
        """For so long the process had been starting, and preparing data, when the run was built."""
        self._seconds["start_up/imports"] += seconds
        if prepared:
            self._seconds["start_up/prepare"] += prepared
        self._born -= seconds + prepared

    def switch(self, name: str) -> str:
        """From now on time belongs to ``name``; returns what it belonged to."""
        now = time.monotonic()
        self._seconds[self._now] += now - self._since
        self._since, before, self._now = now, self._now, name
        return before

    @contextmanager
    def during(self, name: str) -> Iterator[None]:
        """Time inside the block belongs to ``name``, which is any, and new ones need no edit."""
        before = self.switch(name)
        try:
            yield
        finally:
            self.switch(before)

    def begin(self, step: int) -> None:
        """Everything is built, and training begins after ``step`` steps."""
        self._step, self._begun = step, True
        self.switch(STEPS)
        self._line(BEGIN)

    def step_done(self, step: int) -> None:
        """Counts a step, and writes a line where one is due."""
        if step != self._step + 1:  # the run went back, and what it left is a line of its own
            self._line(LEFT)
        self._step = step
        self._steps += 1
        now = time.monotonic()
        if now - self._written > max(_LEAST_SECONDS, _SHARE * (now - self._born)):
            self._line("time")

    def end(self, *, complete: bool) -> None:
        """Writes what is left of a process that trained; no line follows."""
        if self._begun:
            self._line(END, complete=complete)

    def _line(self, event: str, **details: object) -> None:
        self.switch(self._now)
        self._written = self._since
        seconds = {name: round(value, 6) for name, value in self._taken().items() if value > 0}
        steps, self._steps = self._steps, 0
        self._write(event, self._step, steps=steps, seconds=seconds, **details)

    def _taken(self) -> dict[str, float]:
        """Seconds since the last line; compiling waiting for the device in their places."""
        found, self._seconds = self._seconds, defaultdict(float)
        compiled = compile_seconds()
        left, self._compiled = compiled - self._compiled, compiled
        for name in (STEPS, "validation"):
            part = min(left, found[name])
            found[name] -= part
            found[COMPILE] += part
            left -= part
        waited = found.pop(DEVICE, 0.0)
        hidden = min(waited, found[DATA_WAIT])
        found[DATA_WAIT] -= hidden
        found[STEPS] += waited + hidden
        return found
