"""Starts peers as processes and lets them take turns."""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.work import Job


@dataclass(kw_only=True, eq=False)
class Peer:
    """A peer: its name in tables, the module that runs it, its job, and its measurements."""

    name: str
    module: str
    job: Job
    milliseconds: list[float] = field(default_factory=list)
    cpu_milliseconds: list[float] = field(default_factory=list)
    first_step_seconds: float = 0.0
    answer: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    _process: subprocess.Popen[str] | None = None
    _log: Path | None = None

    def start(self, directory: Path) -> None:
        """Starts the process and waits until it has warmed up."""
        self._log = directory / f"{self.name.replace(' ', '_').replace('/', '_')}.log"
        environment = os.environ | {
            "OMP_NUM_THREADS": str(self.job.threads),
            "TOKENIZERS_PARALLELISM": "false",
        }
        begin = time.perf_counter()
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", self.module, self.job.dump()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
            )
        self._read()
        self.first_step_seconds = time.perf_counter() - begin

    def run(self, steps: int) -> None:
        """Runs a round and records its milliseconds per step."""
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{steps}\n")
            self._process.stdin.flush()
            self._read()
        except (OSError, ValueError) as problem:  # it died since the last round
            self.error = self.error or f"{type(problem).__name__}: {problem}"
        if not self.error:
            self.milliseconds.append(1000 * self.answer["seconds"] / self.answer["steps"])
            self.cpu_milliseconds.append(1000 * self.answer["cpu_seconds"] / self.answer["steps"])

    def stop(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.communicate(timeout=60)

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            self.answer = json.loads(line)
            return
        assert self._log is not None
        self._process.wait()
        self.error = cause(self._log.read_text()) or f"exit {self._process.returncode}"
        print(f"  {self.name}: {self.error}", file=sys.stderr)

    @property
    def median(self) -> float:
        """The median of all rounds' milliseconds per step."""
        return statistics.median(self.milliseconds)

    @property
    def cpu_median(self) -> float:
        """The median of all rounds' CPU milliseconds of the process per step."""
        return statistics.median(self.cpu_milliseconds)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, in milliseconds."""
        low, _, high = statistics.quantiles(self.milliseconds, n=4)
        return (high - low) / 2


def cause(log: str) -> str:
    """The line of a log that says why a process died, or else its last one.

    Of the last traceback it is the first line of the exception; torch's compiler adds advice to it.
    """
    lines = [line for line in log.splitlines() if line.strip()]
    starts = [i for i, line in enumerate(lines) if line.startswith("Traceback (most recent")]
    after = lines[starts[-1] + 1 :] if starts else []
    unindented = [line for line in after if not line.startswith((" ", "\t"))]
    return (unindented or lines[-1:] or [""])[0][:200]


def start_all(directory: str | Path, peers: Iterable[Peer]) -> list[Peer]:
    """Starts peers alongside each other, since most of a start is compilation; those that live.

    Inductor keeps the fastest of several timings of a kernel, which a busy device hardly changes.
    """
    with ThreadPoolExecutor() as pool:
        started = {peer: pool.submit(peer.start, Path(directory)) for peer in peers}
    for future in started.values():
        future.result()
    return [peer for peer in started if not peer.error]


def alternate(
    peers: Sequence[Peer], *, rounds: int, steps: int, until: float = float("inf")
) -> None:
    """Runs rounds of all living peers, in a new order each time; all must have been started.

    After the time ``until``, seconds since the epoch, no round begins but the first three.
    """
    order = random.Random(0)
    for index in range(rounds):
        if index >= 3 and time.time() > until:
            break
        alive = [peer for peer in peers if not peer.error]
        for peer in order.sample(alive, len(alive)):
            peer.run(steps)


def duel(peers: Sequence[Peer], directory: Path, *, rounds: int, steps: int) -> list[Peer]:
    """Lets peers alternate, and returns those that could run.

    Args:
        peers: processes to start.
        directory: folder for their logs.
        rounds: measurements of each peer.
        steps: optimizer steps of one measurement.
    """
    for peer in peers:
        peer.start(directory)
    alternate(peers, rounds=rounds, steps=steps)
    for peer in peers:
        peer.stop()
    good = [peer for peer in peers if peer.milliseconds and not peer.error]
    counts = {peer.answer["parameters"] for peer in good}
    assert len(counts) <= 1, f"the peers do not have the same model: {counts}"
    return good


def ratio(ours: Peer, other: Peer) -> tuple[float, float]:
    """Returns ours / other and its spread, from the ratios of rounds, where slowdowns cancel.

    The spread is half the distance between the quartiles of the rounds' ratios.
    """
    ratios = [a / b for a, b in zip(ours.milliseconds, other.milliseconds, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return middle, (high - low) / 2
