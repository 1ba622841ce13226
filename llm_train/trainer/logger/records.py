"""Reading ``metrics.jsonl``: lines as they were appended, and the one curve that they mean.

A run that was killed logs some steps twice, and a run that went back to an earlier checkpoint logs
steps that no longer belong to it. The file keeps them all; reading drops what was superseded.
"""

import json
import logging
import math
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

# A line of the file, whose values are whatever JSON holds: numbers of metrics, details of events.
Record = dict[str, Any]

_log = logging.getLogger(__name__)

# JSON has no such numbers. A metric is never text, so that the way back is unambiguous.
_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def encode(record: Record) -> bytes:
    """One line of strict JSON with its newline; non-finite floats become strings."""
    finite = {
        key: str(float(value)) if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in record.items()
    }
    return (json.dumps(finite, allow_nan=False, ensure_ascii=False) + "\n").encode()


def read_lines(path: Path) -> list[Record]:
    """Every whole line of the file, in order, events among metrics.

    A last line without a newline was cut by a kill and is dropped; so is any line that no logger of
    ours can have written, with one warning for all of them.
    """
    *lines, _torn = path.read_bytes().split(b"\n")
    records: list[Record] = []
    odd: list[int] = []
    for number, line in enumerate(lines, start=1):
        try:
            items = json.loads(line).items()
            # A name is what ``encode`` made of a number; a list cannot be looked up.
            record = {k: _NON_FINITE.get(v, v) if isinstance(v, str) else v for k, v in items}
            _require_record(record)
        except Exception:  # JSON may hold anything, and what is looked up in it may raise anything
            odd.append(number)
        else:
            records.append(record)
    if odd:
        others = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
        _log.warning(
            "%s: line %d%s skipped: not a step with its metrics, or an event; remove it or "
            "restore the file",
            path,
            odd[0],
            others,
        )
    return records


def _require_record(record: Record) -> None:
    """Raises unless readers can compute with the record's step, time and metrics."""
    numbers = {"step": record["step"]}
    if "time" in record:
        datetime.fromisoformat(record["time"])
    if "event" not in record:  # the details of an event are shown as they are
        numbers |= {name: value for name, value in record.items() if name != "time"}
    elif not isinstance(record["event"], str):
        raise TypeError("the name of an event is text")
    if type(record["step"]) is not int or not 0 <= record["step"] < 1 << 53:
        raise ValueError("a step is counted from 0")
    for name, value in numbers.items():
        if not isinstance(value, int | float):
            raise TypeError(f"{name} is not a number")
        float(value)  # JSON's integers have no end


def merge(lines: Iterable[Record]) -> list[Record]:
    """One record per step, ascending, with what a resumed run superseded left out.

    An event ``resume`` or ``rollback`` at step S drops everything before it with a step above S; an
    event ``start`` drops everything before it. Of one step's records the later values hold.

    >>> merge([
    ...     {"step": 1, "a": 1.0}, {"step": 2, "a": 2.0}, {"step": 3, "a": 3.0},
    ...     {"event": "resume", "step": 2},
    ...     {"step": 3, "a": 3.5}, {"step": 3, "b": 0.5},
    ... ])
    [{'step': 1, 'a': 1.0}, {'step': 2, 'a': 2.0}, {'step': 3, 'a': 3.5, 'b': 0.5}]
    """
    merged: dict[int, Record] = {}
    for line in lines:
        step, event = line["step"], line.get("event")
        if event == "start":
            merged.clear()
        elif event in ("resume", "rollback"):
            merged = {other: record for other, record in merged.items() if other <= step}
        elif event is None:
            merged.setdefault(step, {}).update(line)
    return [merged[step] for step in sorted(merged)]


def read_metrics(path: Path) -> list[Record]:
    """The run's metrics: one dictionary per step with ``step``, ``time`` and every metric."""
    return merge(read_lines(path))
