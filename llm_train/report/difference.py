"""What sets two runs apart: settings, code and environment, data, and where losses part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llm_train.checkpoint import manifest
from llm_train.errors import CheckpointError
from llm_train.report.names import ABSENT, differing
from llm_train.report.run import RecordedRun
from llm_train.run.directory import CHECKPOINTS
from llm_train.runtime.structure import flat

_LOSSES = ("train/loss", "val/loss", "val/bits_per_byte")


def difference(a: RecordedRun, b: RecordedRun) -> dict[str, dict[str, str]]:
    """Rows by section, each with both values; a section in which nothing differs says so."""
    data = [flat({**run.derived.get("data", {}), **_fingerprint(run.path)}) for run in (a, b)]
    sections = {
        "settings": {key: f"{old} -> {new}" for key, (old, new) in differing([a, b]).items()},
        "code and environment": _rows(a.environment, b.environment),
        "data": _rows(*data),
    }
    if not (a.environment and b.environment):
        sections["code and environment"] = {"unknown": "a run did not record them"}
    same = {"all": "the same"}
    return {title: rows or same for title, rows in sections.items()} | {"losses": _losses(a, b)}


def _rows(a: dict[str, Any], b: dict[str, Any]) -> dict[str, str]:
    pairs = {key: (a.get(key, ABSENT), b.get(key, ABSENT)) for key in a | b if key}
    return {key: f"{old} -> {new}" for key, (old, new) in pairs.items() if old != new}


def _fingerprint(run_dir: Path) -> dict[str, str]:
    """That of the data when the newest checkpoint was written, if there is one."""
    for path in sorted((run_dir / CHECKPOINTS).glob("step-*"), reverse=True):
        try:
            return {"fingerprint": str(manifest.read(path).metadata["data"]["fingerprint"])}
        except (CheckpointError, KeyError, TypeError):
            continue
    return {}


def _losses(a: RecordedRun, b: RecordedRun) -> dict[str, str]:
    """The first logged step at which losses are not equal, and the last values of both."""
    rows: dict[str, str] = {}
    for metric in _LOSSES:
        first, second = dict(a.points(metric)), dict(b.points(metric))
        both = {step: f"{first[step]} -> {second[step]}" for step in first if step in second}
        apart = [step for step in both if str(first[step]) != str(second[step])]  # NaN is NaN
        equal = [step for step in both if not apart or step < apart[0]]
        if apart:
            rows[metric] = f"differ from step {apart[0]:,}: {both[apart[0]]}"
            rows[f"{metric}, step {max(both):,}"] = both[max(both)]
        if equal:
            rows[f"{metric}, the same"] = f"at {len(equal):,} log points, to step {equal[-1]:,}"
    return rows or {"all": "no step that both logged"}
