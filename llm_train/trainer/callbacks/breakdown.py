"""Where the time of recorded steps went, from the events of a Chrome trace.

Every instant counts once, so that the table adds up to the time of the steps. On a GPU an instant
belongs to the kernel that runs; to communication only where no other kernel runs beside it; to
copies where nothing else runs; to waiting for data where the device stands still while the host is
in the loader; and otherwise to the host (python/other). On a CPU it belongs to the innermost
operator.

What belongs to the head or to the optimizer cannot be told from a kernel's name. The callback
leaves marks on the host's timeline, a kernel belongs to the marked range in which it was launched,
and an operator of the backward to that of the forward operator with its sequence number. Where the
whole network is compiled as one graph, the head has no range of its own and counts among the rest.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from llm_train.trainer.callbacks.intervals import Claim, Union, exclusive, innermost
from llm_train.trainer.callbacks.kinds import (
    COMMUNICATION,
    COPIES,
    DATA,
    HEAD,
    KINDS,
    OPTIMIZER,
    OTHER,
    kernel_kind,
    operator_kind,
    short,
)

HEAD_RANGE = "llm_train::head and loss"
UPDATE_MARK = "llm_train::update begins"
LOADER_RANGE = "llm_train::waiting for data"
_STEP_RANGE = "ProfilerStep#"
_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
_LAUNCH = ("cuda_runtime", "cuda_driver")
_HOST = ("cpu_op", "user_annotation")
_RANKS = {COMMUNICATION: 1, COPIES: 2, DATA: 3, OTHER: 4}  # everything else is 0


class Event(NamedTuple):
    """A complete event of a Chrome trace.

    Attributes:
        name: of kernel, operator, range or call.
        category: the trace's ``cat``.
        start: microseconds.
        end: microseconds.
        thread: of the host; a stream of the device.
        correlation: equal for a kernel and the call that launched it; 0 is none.
        sequence: equal for a forward operator and its backward; -1 is none.
        backward: whether autograd's backward runs it.
    """

    name: str
    category: str
    start: float
    end: float
    thread: int = 0
    correlation: int = 0
    sequence: int = -1
    backward: bool = False


class Work(NamedTuple):
    """An interval of a kernel or of an operator.

    Attributes:
        name: of the kernel or the operator.
        kind: one of ``kinds.KINDS``.
        start: microseconds.
        end: microseconds.
        calls: 1 for the first piece of a call, 0 for the others.
    """

    name: str
    kind: str
    start: float
    end: float
    calls: int = 1


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of a table: milliseconds and calls per step, and the share of the step's time."""

    name: str
    milliseconds: float
    share: float
    calls: float


@dataclass(frozen=True, kw_only=True)
class Breakdown:
    """Where the time of some steps went.

    Attributes:
        steps: number of them.
        step_milliseconds: wall time of one.
        idle: share of the time in which no kernel ran; None without a device.
        kinds: one row for each of ``kinds.KINDS``; shares add up to 1.
        largest: the kernels, or without a device the operators, with the largest sums of durations.
    """

    steps: int
    step_milliseconds: float
    idle: float | None
    kinds: tuple[Row, ...]
    largest: tuple[Row, ...]


def read_events(path: Path) -> list[Event]:
    """The events of a gzipped Chrome trace that the profiler wrote."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        raw: list[dict[str, Any]] = json.load(file)["traceEvents"]
    wanted = {*_DEVICE, *_LAUNCH, *_HOST}
    return [_event(each) for each in raw if each.get("ph") == "X" and each.get("cat") in wanted]


def _event(raw: dict[str, Any]) -> Event:
    arguments = raw.get("args", {})
    return Event(
        name=raw["name"],
        category=raw["cat"],
        start=float(raw["ts"]),
        end=float(raw["ts"]) + float(raw["dur"]),
        thread=int(raw["tid"]),
        correlation=int(arguments.get("correlation", 0)),
        sequence=int(arguments.get("Sequence number", -1)),
        backward=int(arguments.get("Fwd thread id", 0)) > 0,
    )


def break_down(events: Sequence[Event], largest: int = 10) -> Breakdown:
    """Charges every instant of the recorded steps to one kind.

    Args:
        events: must contain the profiler's own ranges around steps.
        largest: how many kernels or operators to name.
    """
    steps = [e for e in events if e.name.startswith(_STEP_RANGE) and e.category in _HOST]
    assert steps, "the trace has no steps"
    start, end = min(e.start for e in steps), max(e.end for e in steps)
    events = [e for e in events if start <= e.start < end]
    marks = _Marks(events, steps)
    device = [e for e in events if e.category in _DEVICE]
    work = _device_work(device, events, marks) if device else _host_work(events, marks)
    claims = [Claim(w.start, w.end, _RANKS.get(w.kind, 0), w.kind) for w in work]
    claims += [Claim(e.start, e.end, _RANKS[DATA], DATA) for e in marks.loading]
    claims.append(Claim(start, end, _RANKS[OTHER], OTHER))
    times = exclusive(claims, start, end)
    calls = Counter({DATA: len(marks.loading)})
    for w in work:
        calls[w.kind] += w.calls if w.kind not in (DATA, OTHER) else 0
    scale = _Scale(len(steps), end - start)
    kernels = [(e.start, min(e.end, end)) for e in device if e.category == "kernel"]
    return Breakdown(
        steps=len(steps),
        step_milliseconds=(end - start) / len(steps) / 1000,
        idle=1 - Union(kernels).length / (end - start) if device else None,
        kinds=tuple(scale.row(kind, times.get(kind, 0.0), calls[kind]) for kind in KINDS),
        largest=_largest(work, scale, largest),
    )


class _Scale(NamedTuple):
    steps: int
    microseconds: float

    def row(self, name: str, microseconds: float, calls: int) -> Row:
        return Row(
            name=name,
            milliseconds=microseconds / self.steps / 1000,
            share=microseconds / self.microseconds,
            calls=calls / self.steps,
        )


class _Marks:
    """Which instants of which host thread belong to the head, the update and the loader."""

    def __init__(self, events: Sequence[Event], steps: Sequence[Event]) -> None:
        self.main = steps[0].thread
        self.loading = [e for e in events if e.name == LOADER_RANGE]
        self._loading = Union((e.start, e.end) for e in self.loading)
        # An update ends with its step. Whatever thread launches meanwhile works for it.
        self._updating = Union(
            (mark.start, step.end)
            for mark in events
            if mark.name == UPDATE_MARK
            for step in steps
            if step.start <= mark.start < step.end
        )
        head = [(e.start, e.end) for e in events if e.name == HEAD_RANGE]
        intervals = self._backward_of(Union(head), events)
        intervals[self.main] += head
        self._head = {thread: Union(each) for thread, each in intervals.items()}

    def _backward_of(
        self, forward: Union, events: Sequence[Event]
    ) -> dict[int, list[tuple[float, float]]]:
        """By thread, when the backward of what ran in ``forward`` runs."""
        # Several operators carry a number before the last of them makes the node that uses it up.
        makers: dict[int, Event] = {}
        for e in sorted(events, key=lambda e: e.start):
            if e.sequence >= 0 and not e.backward and e.thread == self.main:
                makers[e.sequence] = e
        numbers = {number for number, e in makers.items() if e.start in forward}
        intervals: dict[int, list[tuple[float, float]]] = defaultdict(list)
        for e in events:
            if e.backward and e.sequence in numbers:
                intervals[e.thread].append((e.start, e.end))
        return intervals

    def kind(self, thread: int, time: float) -> str | None:
        """What an instant of a host thread is marked as."""
        if time in self._updating:
            return OPTIMIZER
        if thread == self.main and time in self._loading:
            return DATA
        return HEAD if thread in self._head and time in self._head[thread] else None


def _device_work(device: Iterable[Event], events: Sequence[Event], marks: _Marks) -> list[Work]:
    """Kernels and copies."""
    launches = {e.correlation: e for e in events if e.category in _LAUNCH and e.correlation}
    work = []
    for e in device:
        kind = kernel_kind(e.name) if e.category == "kernel" else COPIES
        launch = launches.get(e.correlation)
        if launch is not None and kind not in (COMMUNICATION, COPIES):
            marked = marks.kind(launch.thread, launch.start)
            kind = marked if marked in (HEAD, OPTIMIZER) else kind
        work.append(Work(e.name, kind, e.start, e.end))
    return work


def _host_work(events: Sequence[Event], marks: _Marks) -> list[Work]:
    """Pieces of operators, which add up to their self times."""
    threads: dict[int, list[Event]] = defaultdict(list)
    for e in events:
        if e.category == "cpu_op":
            threads[e.thread].append(e)
    work, seen = [], set()
    for thread, operators in threads.items():
        for start, end, e in innermost(operators):
            kind = operator_kind(e.name)
            if kind != COMMUNICATION:
                kind = marks.kind(thread, start) or kind
            work.append(Work(e.name, kind, start, end, calls=int(e not in seen)))
            seen.add(e)
    return work


def _largest(work: Iterable[Work], scale: _Scale, number: int) -> tuple[Row, ...]:
    times: dict[str, float] = defaultdict(float)
    calls: Counter[str] = Counter()
    for w in work:
        name = short(w.name)
        times[name] += w.end - w.start
        calls[name] += w.calls
    top = sorted(times, key=lambda name: -times[name])[:number]
    return tuple(scale.row(name, times[name], calls[name]) for name in top)
