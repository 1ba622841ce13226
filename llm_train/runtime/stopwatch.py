"""A clock that runs only while training, so that saving often does not change the throughput.

On a CUDA device the marks are events in the stream, not readings of the host's clock: the host runs
ahead of the device, and when it reaches a log point the device may still be working on the interval
before. An interval's seconds can therefore be asked for later, without waiting now.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_Mark = float | torch.cuda.Event


class Lap:
    """An interval of training, pauses left out."""

    def __init__(self, runs: list[tuple[_Mark, _Mark]]) -> None:
        self._runs = runs

    def wait(self) -> None:
        """Waits until the device has reached the end of the interval."""
        end = self._runs[-1][1]
        if not isinstance(end, float):
            end.synchronize()

    @property
    def seconds(self) -> float:
        """Its length; ``wait`` comes first."""
        return sum(_between(start, end) for start, end in self._runs)


class Stopwatch:
    """Seconds between laps, without the pauses."""

    def __init__(self) -> None:
        self._start = _mark()
        self._runs: list[tuple[_Mark, _Mark]] = []

    def lap(self) -> Lap:
        """Ends a lap and begins the next."""
        now = _mark()
        lap = Lap([*self._runs, (self._start, now)])
        self._start, self._runs = now, []
        return lap

    def pause(self) -> None:
        """Leaves out what happens from here to ``resume``."""
        self._runs.append((self._start, _mark()))

    def resume(self) -> None:
        """Runs again after ``pause``."""
        self._start = _mark()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out what happens inside the block."""
        self.pause()
        try:
            yield
        finally:
            self.resume()


def _mark() -> _Mark:
    """A point in time: an event on CUDA, once it is in use, else seconds."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def _between(start: _Mark, end: _Mark) -> float:
    if isinstance(start, float) or isinstance(end, float):
        # CUDA came into use between the two: nothing was trained before.
        return end - start if isinstance(start, float) and isinstance(end, float) else 0.0
    return float(start.elapsed_time(end)) / 1000
