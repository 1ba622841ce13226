"""A clock that runs only while training, so that frequent saving does not change the throughput.

On a device the host runs ahead: when the host reaches a log point, the device may still work on the
interval before it. There a mark is an event in the device's stream, whose time can be asked for
later, without waiting now.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from llm_train.runtime.ledger import Ledger

_Mark = float | torch.Event
_HOST = torch.device("cpu")


class Lap:
    """An interval of training without its pauses."""

    def __init__(self, runs: list[tuple[_Mark, _Mark]]) -> None:
        self._runs = runs

    def wait(self) -> None:
        """Waits until the device has reached the end of the interval."""
        end = self._runs[-1][1]
        if not isinstance(end, float):
            end.synchronize()

    @property
    def seconds(self) -> float:
        """The length of the interval; call ``wait`` first."""
        return sum(_between(start, end) for start, end in self._runs)


class Stopwatch:
    """Measures the seconds between laps, without the pauses.

    Args:
        device: whose time is measured; the kind of device that trains, not any that is there.
        ledger: is told what each pause is for.
    """

    def __init__(self, device: torch.device = _HOST, ledger: Ledger | None = None) -> None:
        self._device = device
        self._ledger = ledger or Ledger()
        self._before = ""
        self._start = self._mark()
        self._runs: list[tuple[_Mark, _Mark]] = []

    def lap(self) -> Lap:
        """Ends a lap and begins the next one."""
        now = self._mark()
        lap = Lap([*self._runs, (self._start, now)])
        self._start, self._runs = now, []
        return lap

    def pause(self, name: str = "pause") -> None:
        """Leaves out what happens from here to ``resume``; ``name`` says what that is."""
        self._before = self._ledger.switch(name)
        self._runs.append((self._start, self._mark()))

    def resume(self) -> None:
        """Runs again after ``pause``."""
        self._ledger.switch(self._before)
        self._start = self._mark()

    @contextmanager
    def paused(self, name: str = "pause") -> Iterator[None]:
        """Leaves out what happens inside the block."""
        self.pause(name)
        try:
            yield
        finally:
            self.resume()

    def _mark(self) -> _Mark:
        if self._device.type == "cpu":
            return time.perf_counter()
        event = torch.Event(self._device, enable_timing=True)
        event.record()
        return event


def _between(start: _Mark, end: _Mark) -> float:
    if isinstance(start, float) or isinstance(end, float):
        assert isinstance(start, float), "one stopwatch has marks of one kind"
        assert isinstance(end, float), "one stopwatch has marks of one kind"
        return end - start
    return float(start.elapsed_time(end)) / 1000
