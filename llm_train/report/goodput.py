"""Where the wall time of a run went, over all of its processes.

Each process wrote what it did (``runtime/ledger.py``). What no process can write is found here: the
time between two of them, and which steps were trained again, from the highest step that either file
knew of when a process began. Effective training time ratio: "the ratio of productive runtime to
available wallclock time" (Kokolis et al., HPCA 2025, arXiv:2410.21680); productive are steps, each
counted once.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from math import isfinite
from typing import NamedTuple, Self

from llm_train.runtime.ledger import BEGIN, LEFT, STEPS
from llm_train.trainer.logger.records import Record

REPLAYED, RESTART = "replayed_steps", "restart"
_BACK = (BEGIN, "start", "resume", "rollback")  # events of either file after which steps begin


class _Line(NamedTuple):
    """A line of either file."""

    time: float
    step: int
    event: str = ""
    steps: int = 0
    seconds: Mapping[str, float] | None = None  # of a line of the ledger
    complete: bool = False


@dataclass(kw_only=True)
class Goodput:
    """Seconds by name, of all processes.

    Attributes:
        seconds: name -> seconds; what is not a step makes no progress.
        wall: by the clock, from the start of the first process to the last line, without the time
            in which a complete run waited for somebody to give it a larger budget.
        replayed: steps that were trained again.
        restarts: processes after the first.
    """

    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    wall: float = 0.0
    replayed: int = 0
    restarts: int = 0

    @classmethod
    def of(cls, ledger: Iterable[Record], metrics: Iterable[Record]) -> Self:
        """Adds up the lines of ``ledger.jsonl``, with the steps that ``metrics.jsonl`` shows."""
        lines = [line for record in ledger if (line := _line(record))]
        lines += [_Line(_time(m), m["step"], m.get("event", "")) for m in metrics if "time" in m]
        found = cls()
        last: _Line | None = None  # of the ledger
        # The highest step yet, what it was when steps last went back and the time before, where
        # they are now.
        top = known = earlier = at = 0
        for line in sorted(lines, key=lambda line: line.time):
            first = line.step - line.steps
            if line.event in _BACK:
                earlier, known, at = known, top, first
            if line.event != LEFT:  # which comes after the event of the rollback
                found.replayed += max(0, min(line.step, known) - at)
                at = max(at, line.step)
            top = max(top, line.step)
            if line.seconds is not None:
                before = earlier if line.event == LEFT else known
                found._add(line, line.seconds, last, again=max(0, min(line.step, before) - first))
                last = line
        return found

    def _add(
        self, line: _Line, seconds: Mapping[str, float], last: _Line | None, again: int
    ) -> None:
        """Adds a line, and the time before it where a process begins."""
        length = sum(seconds.values())
        if last is None:
            self.wall = length
        elif line.event == BEGIN:
            gap = max(0.0, line.time - length - last.time)
            self.restarts += 1
            self.seconds[RESTART] += 0.0 if last.complete else gap
            self.wall += length if last.complete else line.time - last.time
        else:
            self.wall += line.time - last.time
        for name, value in seconds.items():
            self.seconds[name] += value
        if again and line.steps:
            part = seconds.get(STEPS, 0.0) * again / line.steps
            self.seconds[STEPS] -= part
            self.seconds[REPLAYED] += part

    @property
    def ratio(self) -> float:
        """Effective training time ratio."""
        return self.seconds[STEPS] / self.wall if self.wall > 0 else 0.0

    def table(self) -> dict[str, str]:
        """Rows: the whole and the ratio, then where time went, largest first."""
        rows = {"wall time": _shown(self.wall, self.wall)} if self.seconds else {}
        for name, seconds in sorted(self.seconds.items(), key=lambda item: -item[1]):
            row = name.replace("/", ": ").replace("_", " ")
            rows[row] = _shown(seconds, self.wall)
            if name == REPLAYED:
                rows[row] += f", {self.replayed:,} steps"
            elif name == RESTART:
                rows[row] += f", {self.restarts:,} times"
        if self.seconds:
            rows["not explained"] = _shown(self.wall - sum(self.seconds.values()), self.wall)
            rows["effective training time ratio"] = f"{self.ratio:.1%}"
        return rows


def _shown(seconds: float, wall: float) -> str:
    """A length and its share.

    >>> _shown(5025.04, 10050.08), _shown(7.25, 10.0), _shown(-0.001, 10.0)
    ('1:23:45 (50.00%)', '7.2 s (72.50%)', '0.0 s (0.00%)')
    """
    seconds = max(0.0, seconds)
    length = f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))
    return f"{length} ({seconds / wall:.2%})" if wall > 0 else length


def _line(record: Record) -> _Line | None:
    """A line of the ledger, or nothing where no ledger has written it."""
    seconds, steps = record.get("seconds"), record.get("steps")
    if "event" not in record or "time" not in record or not isinstance(seconds, dict):
        return None
    sound = all(isinstance(s, int | float) and isfinite(s) and s >= 0 for s in seconds.values())
    if not sound or type(steps) is not int or not 0 <= steps < 1 << 53:
        return None
    return _Line(
        _time(record), record["step"], record["event"], steps, seconds, bool(record.get("complete"))
    )


def _time(record: Record) -> float:
    return datetime.fromisoformat(record["time"]).timestamp()
