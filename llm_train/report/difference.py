"""What sets two runs apart: settings, code and environment, data, and where losses part."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_train.checkpoint import manifest
from llm_train.errors import CheckpointError
from llm_train.report.names import ABSENT, differing
from llm_train.report.run import RecordedRun
from llm_train.run.directory import CHECKPOINTS
from llm_train.runtime.structure import flat


def difference(a: RecordedRun, b: RecordedRun) -> dict[str, dict[str, str]]:
    """Rows by section, each with both values; a section in which nothing differs says so."""
    sections = {
        "settings": {key: _pair(*values) for key, values in differing([a, b]).items()},
        "code and environment": _rows(a.environment, b.environment),
        "data": _rows(
            a.derived.get("data", {}) | _order(a.path), b.derived.get("data", {}) | _order(b.path)
        ),
    }
    if not (a.environment and b.environment):
        sections["code and environment"] = {"unknown": "a run did not record them"}
    same = {"all": "the same"}
    return {title: rows or same for title, rows in sections.items()} | {"losses": _losses(a, b)}


def _rows(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, str]:
    before, after = flat(a), flat(b)
    return {
        key: _pair(before.get(key, ABSENT), after.get(key, ABSENT))
        for key in before | after
        if before.get(key, ABSENT) != after.get(key, ABSENT)
    }


def _order(run_dir: Path) -> dict[str, str]:
    """The fingerprint that the data had when the newest checkpoint was written, if there is one."""
    for path in sorted((run_dir / CHECKPOINTS).glob("step-*"), reverse=True):
        try:
            return {"fingerprint": str(manifest.read(path).metadata["data"]["fingerprint"])}
        except (CheckpointError, KeyError, TypeError):
            continue
    return {}


def _losses(a: RecordedRun, b: RecordedRun) -> dict[str, str]:
    """The first logged step at which losses are not equal, and the last values of both."""
    rows: dict[str, str] = {}
    for metric in ("train/loss", "val/loss", "val/bits_per_byte"):
        first, second = dict(a.points(metric)), dict(b.points(metric))
        shared = sorted(first.keys() & second.keys())
        apart = [step for step in shared if _unequal(first[step], second[step])]
        if not shared:
            if first or second:
                rows[metric] = "no step that both logged"
            continue
        if not apart:
            rows[metric] = f"the same at all {len(shared):,} steps that both logged"
            continue
        equal = [step for step in shared if step < apart[0]]
        after = f", the same up to step {equal[-1]:,}" if equal else ""
        rows[metric] = (
            f"differ from step {apart[0]:,}: {_pair(*_at(apart[0], first, second))}{after}"
        )
        rows[f"{metric}, step {shared[-1]:,}"] = _pair(*_at(shared[-1], first, second))
    return rows


def _at(step: int, first: Mapping[int, float], second: Mapping[int, float]) -> list[float]:
    return [first[step], second[step]]


def _unequal(a: float, b: float) -> bool:
    return a != b and not (a != a and b != b)


def _pair(a: object, b: object) -> str:
    return f"{a} -> {b}"
