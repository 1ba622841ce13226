"""What sets runs apart, and the names that they get from it.

Of two, that is settings, code and environment, data, and where losses part.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from llm_train.checkpoint import manifest
from llm_train.errors import CheckpointError
from llm_train.report.run import RecordedRun
from llm_train.run.directory import CHECKPOINTS
from llm_train.runtime.structure import flat

_LOSSES = ("train/loss", "val/loss", "val/bits_per_byte")
ABSENT = "-"  # of a setting that a run does not have, as one of another class
_MOST = 4  # settings in a name
_INNER = ("class_path", "init_args")
_FIRST = ("model", "batch", "data", "init_from")  # which say most about a run


def differing(runs: Sequence[RecordedRun]) -> dict[str, list[object]]:
    """Keys that do not have one value in all runs -> the value in each, classes by their names."""
    if len(runs) < 2:
        return {}
    known = dict.fromkeys(key for run in runs for key in run.settings)
    keys = sorted(known, key=lambda key: key.partition(".")[0] not in _FIRST)
    found = {key: [_named(run.settings.get(key, ABSENT)) for run in runs] for key in keys}
    return {key: values for key, values in found.items() if any(v != values[0] for v in values)}


def names(runs: Sequence[RecordedRun]) -> list[str]:
    """A name for each run, no two the same: settings where they tell all apart, or its folder's."""
    shared = {_short(key): v for key, v in differing(runs).items() if ABSENT not in v}
    found = []
    for number in range(len(runs)):
        said = [f"{key}={values[number]}" for key, values in shared.items()]
        found.append(", ".join(said[:_MOST] + ["..."] * (len(said) > _MOST)))
    for further in ([run.name for run in runs], [str(run.path) for run in runs]):
        often = Counter(found)
        found = [
            f"{more}: {name}".rstrip(": ") if often[name] > 1 or not name else name
            for name, more in zip(found, further, strict=True)
        ]
    return found


def _short(key: str) -> str:
    """A key's last two words.

    >>> _short("model.optimizer.init_args.learning_rate"), _short("model.optimizer.class_path")
    ('optimizer.learning_rate', 'model.optimizer')
    """
    return ".".join([word for word in key.split(".") if word not in _INNER][-2:])


def _named(value: object) -> object:
    if isinstance(value, str) and value.startswith("llm_train."):
        return value.rpartition(".")[2]
    return value


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


def _rows(a: Mapping[str, object], b: Mapping[str, object]) -> dict[str, str]:
    pairs = {key: (a.get(key, ABSENT), b.get(key, ABSENT)) for key in {**a, **b} if key}
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
