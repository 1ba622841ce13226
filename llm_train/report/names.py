"""What sets runs apart in their configurations, and the names that they get from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from llm_train.report.run import RecordedRun

ABSENT = "-"  # of a setting that a run does not have, as one of another class
_MOST = 4  # settings in a name
_INNER = ("class_path", "init_args")
_FIRST = ("model", "batch", "data", "init_from")  # which say most about a run


def differing(runs: Sequence[RecordedRun]) -> dict[str, list[Any]]:
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


def _named(value: Any) -> Any:
    ours = isinstance(value, str) and value.startswith("llm_train.")
    return value.rpartition(".")[2] if ours else value
