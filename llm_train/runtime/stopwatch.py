"""A clock that runs only while training, so that frequent saving does not change the throughput."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_Mark = float | torch.cuda.Event


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
    """Measures the seconds between laps, without the pauses."""

    def __init__(self) -> None:
        self._start = _mark()
        self._runs: list[tuple[_Mark, _Mark]] = []

    def lap(self) -> Lap:
        """Ends a lap and begins the next one."""
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
    """Returns the current time: an event once CUDA is in use, else seconds."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return time.perf_counter()
    # The host runs ahead of the device: when the host reaches a log point, the device may still
    # work on the interval before it. An event in the stream marks the device's time, and its
    # seconds can be asked for later, without waiting now.
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def _between(start: _Mark, end: _Mark) -> float:
    if isinstance(start, float) or isinstance(end, float):
        # CUDA came into use between the two marks, and nothing was trained before.
        return end - start if isinstance(start, float) and isinstance(end, float) else 0.0
    return float(start.elapsed_time(end)) / 1000
