"""Which settings exist and what may stand there, read off signatures, to suggest corrections."""

from __future__ import annotations

import collections.abc
import dataclasses
import difflib
import inspect
import math
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin

import lightning.pytorch as pl

GROUPS = (pl.Trainer, pl.LightningModule, pl.LightningDataModule)

Owner = type | Mapping[str, Any]
"""What has settings: a class, or the top level as a mapping from name to type."""


def settings_of(owner: Owner | None) -> dict[str, Any]:
    """Names of an owner's settings, with their types where these can be resolved."""
    if owner is None:
        return {}
    if isinstance(owner, Mapping):
        return dict(owner)
    constructor: Any = owner.__init__  # type: ignore[misc]
    try:
        names = [
            name
            for name, parameter in inspect.signature(owner).parameters.items()
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        ]
        hints = typing.get_type_hints(inspect.unwrap(constructor))
    except (NameError, TypeError, ValueError):
        names, hints = list(inspect.signature(owner).parameters), {}
    return {name: hints.get(name, Any) for name in names}


def type_at(owner: Owner | None, dotted: str) -> Any:
    """Type of a setting that may lie in groups within groups; Any if unknown."""
    found: Any = owner
    for name in dotted.split("."):
        if not isinstance(found, type | Mapping):
            return Any
        found = settings_of(found).get(name, Any)
    return found


def is_required(owner: Owner, dotted: str) -> bool:
    """Whether a setting below the top level has no default."""
    parent, _, name = dotted.rpartition(".")
    group = type_at(owner, parent) if parent else None
    if not isinstance(group, type):
        return False
    parameter = inspect.signature(group).parameters.get(name)
    return parameter is not None and parameter.default is parameter.empty


def all_keys(owner: Owner) -> list[str]:
    """Every dotted key that is known before a class_path is chosen."""
    keys: list[str] = []
    for name, kind in settings_of(owner).items():
        keys.append(name)
        if is_group(kind):
            keys.extend(f"{name}.{key}" for key in all_keys(kind))
    return keys


def is_group(kind: Any) -> bool:
    """Whether a setting is a group of settings rather than a value or a class_path."""
    if not isinstance(kind, type) or inspect.isabstract(kind):
        return False
    return dataclasses.is_dataclass(kind) or issubclass(kind, GROUPS)


def nearest(word: str, known: Sequence[str]) -> str:
    """What was probably meant, as the end of a sentence; else all there is, if that is not long."""
    found = closest(word, known)
    if found:
        return f"did you mean {found}?"
    return f"known: {', '.join(known)}" if 0 < len(known) <= 15 else "see --help"


def closest(word: str, known: Sequence[str]) -> str:
    """The most similar name, or nothing.

    >>> closest("layerz", ["width", "layers"])
    'layers'
    >>> closest("trainer.prec", ["trainer.precision", "trainer.profiler"])
    'trainer.precision'
    """
    begun = [name for name in known if len(word) > 2 and name.startswith(word)]
    if len(begun) == 1:
        return begun[0]
    lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), list(lower), n=1, cutoff=0.6)
    return lower[close[0]] if close else ""


def families(hint: Any) -> list[type]:
    """The classes in a type whose subclasses a ``class_path`` may name."""
    if get_origin(hint) is collections.abc.Callable:
        return families(get_args(hint)[-1])
    if isinstance(hint, type) and get_origin(hint) is None:
        plain = (int, float, bool, str, dict, list, tuple, type(None))
        return [] if hint in plain else [hint]
    return [family for part in get_args(hint) for family in families(part)]


def class_names(hint: Any) -> list[str]:
    """Short names of the concrete classes that may stand there, ours first."""
    found = {
        kind.__name__: not kind.__module__.startswith("llm_train")
        for family in families(hint)
        for kind in _subclasses(family)
    }
    return sorted(found, key=lambda name: (found[name], name))


def _subclasses(family: type) -> Iterator[type]:
    subclasses: list[type] = type.__subclasses__(family)
    for kind in subclasses:
        public = not kind.__name__.startswith("_") and "[" not in kind.__name__
        trusted = kind.__module__.split(".")[0] in ("llm_train", "lightning", "torch")
        if public and trusted and not inspect.isabstract(kind):
            yield kind
        yield from _subclasses(kind)


def loaded(path: str) -> type | None:
    """A class by its import path, without importing anything."""
    module, _, name = path.rpartition(".")
    found = getattr(sys.modules.get(module), name, None)
    return found if isinstance(found, type) else None


def describe(hint: Any) -> str:
    """A type in words.

    >>> describe(int), describe(Literal["a", "b"]), describe(float | None)
    ('a whole number', 'one of a, b', 'a number or null')
    """
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    if hint in words:
        return words[hint]
    if hint is type(None):
        return "null"
    if (choices := choices_of(hint)) and all(get_origin(p) is Literal for p in _parts(hint)):
        return f"one of {', '.join(choices)}"
    if get_origin(hint) in (Union, types.UnionType):
        parts = [describe(part) for part in get_args(hint)]
        if "a number" in parts and "a whole number" in parts:
            parts.remove("a whole number")
        return " or ".join(dict.fromkeys(parts))
    if get_origin(hint) is tuple:
        inner = [part for part in get_args(hint) if part is not Ellipsis]
        number = "" if Ellipsis in get_args(hint) else f"{len(inner)} "
        return f"a list of {number}values, each {describe(inner[0])}"
    if get_origin(hint) in (list, collections.abc.Iterable, collections.abc.Sequence):
        return f"a list, each {describe(get_args(hint)[0])}"
    names = dict.fromkeys(family.__name__ for family in families(hint))
    return f"a {' or '.join(names)}" if names else str(hint)


def _parts(hint: Any) -> list[Any]:
    return list(get_args(hint)) if get_origin(hint) in (Union, types.UnionType) else [hint]


def choices_of(hint: Any) -> list[str]:
    """Values that the Literals of a type allow."""
    literals = [part for part in _parts(hint) if get_origin(part) is Literal]
    return list(dict.fromkeys(str(value) for part in literals for value in get_args(part)))


def whole_neighbours(text: str) -> str:
    """Whole numbers near a fraction.

    >>> whole_neighbours("2.5"), whole_neighbours("2.0"), whole_neighbours("wide")
    ('2 or 3', '2', '')
    """
    try:
        value = float(text)
    except ValueError:
        return ""
    if not math.isfinite(value):
        return ""
    low, high = math.floor(value), math.ceil(value)
    return f"{low} or {high}" if low != high else f"{low}"


def public_classes(module: str) -> list[str]:
    """Names of the classes in a module that is loaded."""
    members = vars(sys.modules[module]) if module in sys.modules else {}
    return [name for name, value in members.items() if isinstance(value, type) and name[0] != "_"]
