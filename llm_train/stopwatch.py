"""A clock that runs only while training, so that saving often does not change the throughput."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Seconds since the last lap, without the pauses."""

    def __init__(self) -> None:
        self._lap_start = time.perf_counter()
        self._paused_seconds = 0.0

    def lap(self) -> float:
        """Ends a lap and returns its running seconds."""
        now = time.perf_counter()
        seconds = now - self._lap_start - self._paused_seconds
        self._lap_start, self._paused_seconds = now, 0.0
        return seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock inside the block, which must leave the device idle."""
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()  # queued work belongs to the lap, not to the pause
        start = time.perf_counter()
        try:
            yield
        finally:
            self._paused_seconds += time.perf_counter() - start
