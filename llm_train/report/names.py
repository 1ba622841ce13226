"""What sets runs apart in their configurations, and the names that they get from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from llm_train.report.run import RecordedRun

ABSENT = "-"  # of a setting that a run does not have, as one of another class
_MOST = 4  # settings in a name
_INNER = ("class_path", "init_args")
_FIRST = ("model", "batch", "data", "init_from")  # which say most about a run


def differing(runs: Sequence[RecordedRun]) -> dict[str, list[Any]]:
    """Keys that do not have one value in all runs -> the value in each, classes by their names."""
    known = dict.fromkeys(key for run in runs for key in run.settings)
    keys = sorted(known, key=lambda key: key.partition(".")[0] not in _FIRST)
    found = {key: [run.settings.get(key, ABSENT) for run in runs] for key in keys}
    return {
        key: [_named(value) for value in values]
        for key, values in found.items()
        if any(value != values[0] for value in values)
    }


def names(runs: Sequence[RecordedRun]) -> list[str]:
    """A name for each run, no two the same: settings where they tell all apart, or its folder's."""
    shared = {key: v for key, v in differing(runs).items() if ABSENT not in v}
    short = {key: _short(key, shared) for key in shared}
    found = []
    for number in range(len(runs)):
        said = [f"{short[key]}={values[number]}" for key, values in shared.items()]
        found.append(", ".join(said[:_MOST] + ["..."] * (len(said) > _MOST)))
    for further in ([run.name for run in runs], [str(run.path) for run in runs]):
        often = Counter(found)
        found = [
            f"{more}: {name}".rstrip(": ") if often[name] > 1 or not name else name
            for name, more in zip(found, further, strict=True)
        ]
    return found


def _short(key: str, keys: Iterable[str]) -> str:
    """As much of a key's end as tells it from the others; a short word is not enough.

    >>> keys = ["a.init_args.warmup_s", "b.init_args.warmup_s", "b.class_path", "x.tokens"]
    >>> [_short(key, keys) for key in keys]
    ['a.warmup_s', 'b.warmup_s', 'b', 'x.tokens']
    """
    words, *others = ([w for w in k.split(".") if w not in _INNER] for k in (key, *keys))
    for length in range(1, len(words)):
        end = words[-length:]
        if len("".join(end)) > 6 and sum(other[-length:] == end for other in others) == 1:
            return ".".join(end)
    return ".".join(words)


def _named(value: Any) -> Any:
    ours = isinstance(value, str) and value.startswith("llm_train.")
    return value.rpartition(".")[2] if ours else value
