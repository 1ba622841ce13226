"""Which settings exist and what may stand there, read off signatures, to suggest corrections."""

import collections.abc
import dataclasses
import functools
import inspect
import math
import types
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, TypeGuard, Union, get_args, get_origin

import jsonargparse
from jsonargparse._parameter_resolvers import get_signature_parameters

from llm_train.discovery import concrete
from llm_train.runtime import yaml12
from llm_train.units import DURATION, Duration

MODE = "yaml12"  # our reader of YAML, by the name under which the parser knows it

# By name, because not every verb imports Lightning.
_GROUPS = ("Trainer", "LightningModule", "LightningDataModule")

Hint: TypeAlias = object
"""A type as an annotation has it: a class, a union, a Literal, Any if unknown."""

JSON: TypeAlias = dict[str, Any]

# Types whose values are written plainly: in words, what --help asks for, and as a JSON schema.
PLAIN: Mapping[Hint, tuple[str, str, JSON]] = {
    int: ("a whole number", "INT", {"type": "integer"}),
    float: ("a number", "NUMBER", {"type": "number"}),
    bool: ("true or false", "true|false", {"type": "boolean"}),
    str: ("text", "TEXT", {"type": "string"}),
    type(None): ("null", "VALUE", {"type": "null"}),
    Duration: ("a duration", "DURATION", {"type": "string", "pattern": DURATION.pattern}),
    Path: ("a path", "VALUE", {"type": "string"}),
    timedelta: ("a time", "VALUE", {"type": ["string", "object"]}),
}


class Setting(NamedTuple):
    """What may stand under a key.

    Attributes:
        hint: its type; Any if unknown.
        required: whether it has no default.
        default: what it is when nothing is given.
        help: what it is, in words.
    """

    hint: Hint
    required: bool = False
    default: object = None
    help: str = ""


Owner = type | Mapping[str, Setting]
"""What has settings: a class, or the top level."""


@functools.cache
def _settings_of(owner: type) -> dict[str, Setting]:
    # jsonargparse's own reading of a signature, with what `**kwargs` of a subclass hand on.
    return {
        found.name: Setting(
            Any
            if found.annotation is inspect.Parameter.empty or isinstance(found.annotation, str)
            else found.annotation,
            found.default is inspect.Parameter.empty,
            found.default,
            found.doc or "",
        )
        for found in get_signature_parameters(owner)
    }


def settings_of(owner: Owner) -> Mapping[str, Setting]:
    """An owner's settings by name."""
    return _settings_of(owner) if isinstance(owner, type) else owner


@functools.cache
def _parser_of(hint: Hint) -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(exit_on_error=False, parser_mode=MODE)
    parser.add_argument("--value", type=hint)
    return parser


def accepts(hint: Hint, value: object) -> bool:
    """Whether the parser takes ``value`` for a setting of this type."""
    if isinstance(value, str) and isinstance(yaml12.load_or_text(value), str):
        # The parser would try YAML 1.1 on a word, where 1:30 is 90 and yes is true.
        words = [part for part in parts(hint) if part not in (int, float, bool)]
        if not words:
            return False
        hint = Union[tuple(words)]  # noqa: UP007 - from a list
    try:
        _parser_of(hint).parse_object({"value": value})
    except (jsonargparse.ArgumentError, ValueError):
        return False
    return True


def flattened(owner: Owner) -> dict[str, Setting]:
    """The settings by dotted key, as far as they are known before a class_path is chosen."""
    flat: dict[str, Setting] = {}
    for name, setting in settings_of(owner).items():
        flat[name] = setting
        if is_group(setting.hint):
            flat |= {f"{name}.{key}": inner for key, inner in flattened(setting.hint).items()}
    return flat


def is_group(kind: Hint) -> TypeGuard[type]:
    """Whether a setting is a group of settings rather than a value or a class_path."""
    if not isinstance(kind, type) or inspect.isabstract(kind):
        return False
    return dataclasses.is_dataclass(kind) or is_of_lightning(kind)


def is_of_lightning(kind: Hint) -> TypeGuard[type]:
    """Whether a class is a Trainer, or what Lightning has for a model or for data."""
    bases = kind.__mro__ if isinstance(kind, type) else ()
    return any(b.__name__ in _GROUPS and b.__module__.startswith("lightning.") for b in bases)


def is_list(hint: Hint) -> bool:
    """Whether a list may stand there."""
    lists = (list, tuple, collections.abc.Iterable, collections.abc.Sequence)
    return any(get_origin(part) in lists or part in (*lists, Any) for part in parts(hint))


def named(hint: Hint) -> Hint:
    """What stands under each name where a mapping of names to classes may stand; else None."""
    inner = get_args(hint) if get_origin(hint) in (dict, collections.abc.Mapping) else ()
    return inner[1] if inner and families(inner[1]) else None


def is_finite(value: object) -> bool:
    """Whether no number in a value, which may be a list or a mapping, is infinite or NaN."""
    if isinstance(value, Mapping | list):
        inner = value.values() if isinstance(value, Mapping) else value
        return all(map(is_finite, inner))
    return not isinstance(value, float) or math.isfinite(value)


def families(hint: Hint) -> list[type[object]]:
    """The classes in a type whose subclasses a ``class_path`` may name."""
    if get_origin(hint) is collections.abc.Callable:
        return families(get_args(hint)[-1]) if get_args(hint) else []
    if isinstance(hint, type) and get_origin(hint) is None:
        plain = hint in (*PLAIN, Any, object, dict, list, tuple)
        return [] if plain or issubclass(hint, BaseException) else [hint]
    return [family for part in get_args(hint) for family in families(part)]


def class_names(hint: Hint) -> list[str]:
    """Short names of the concrete classes that may stand there, ours first."""
    found = {
        kind.__name__: not kind.__module__.startswith("llm_train")
        for kind in _subclasses(hint)
        if not kind.__name__.startswith("_") and "[" not in kind.__name__
        if kind.__module__.split(".")[0] in ("llm_train", "lightning", "torch")
    }
    return sorted(found, key=lambda name: (found[name], name))


def subclass(hint: Hint, name: str) -> type | None:
    """A class by its short name, without importing anything."""
    return next((kind for kind in _subclasses(hint) if kind.__name__ == name), None)


def _subclasses(hint: Hint) -> list[type]:
    return [kind for family in families(hint) for kind in concrete(family)]


def arguments_of_call(hint: Hint) -> int:
    """How many arguments a class gets from whoever calls it, besides its settings."""
    calls = [part for part in parts(hint) if get_origin(part) is collections.abc.Callable]
    given = get_args(calls[0])[:1] if calls else ()
    return len(given[0]) if given and given[0] is not ... else 0


def describe(hint: Hint) -> str:
    """A type in words.

    >>> describe(int), describe(Literal["a", "b"]), describe(float | None), describe(dict[str, str])
    ('a whole number', 'one of a, b', 'a number or null', 'names, each with text')
    """
    if hint in PLAIN:
        return PLAIN[hint][0]
    if (choices := choices_of(hint)) and all(get_origin(p) is Literal for p in parts(hint)):
        return f"one of {', '.join(choices)}"
    if get_origin(hint) in (Union, types.UnionType):
        described = [describe(part) for part in get_args(hint)]
        if "a number" in described and "a whole number" in described:
            described.remove("a whole number")
        return " or ".join(dict.fromkeys(described))
    if get_origin(hint) is tuple:
        inner = [part for part in get_args(hint) if part is not Ellipsis]
        number = "" if Ellipsis in get_args(hint) else f"{len(inner)} "
        return f"a list of {number}values, each {describe(inner[0])}"
    if get_origin(hint) in (dict, collections.abc.Mapping):
        return f"names, each with {describe(get_args(hint)[1])}"
    if get_origin(hint) in (list, collections.abc.Iterable, collections.abc.Sequence):
        return f"a list, each {describe(get_args(hint)[0])}"
    names = " or ".join(dict.fromkeys(family.__name__ for family in families(hint)))
    return f"{'an' if names[0] in 'AEIOU' else 'a'} {names}" if names else "something else"


def parts(hint: Hint) -> list[Hint]:
    """The alternatives of a type."""
    return list(get_args(hint)) if get_origin(hint) in (Union, types.UnionType) else [hint]


def admits_null(hint: Hint) -> bool:
    """Whether null is a value of the type, or the type is not known."""
    return any(part in (None, type(None), Any, object) for part in parts(hint))


def choices_of(hint: Hint) -> list[str]:
    """Values that the Literals of a type allow."""
    literals = [part for part in parts(hint) if get_origin(part) is Literal]
    return list(dict.fromkeys(str(value) for part in literals for value in get_args(part)))


def whole_neighbours(text: str) -> str:
    """Whole numbers near a fraction.

    >>> whole_neighbours("2.5"), whole_neighbours("2.0"), whole_neighbours("wide")
    ('2 or 3', '2', '')
    """
    try:
        low, high = math.floor(float(text)), math.ceil(float(text))
    except (ValueError, OverflowError):
        return ""
    return f"{low} or {high}" if low != high else f"{low}"


def needed(hint: Hint) -> str:
    """What a missing setting wants, in words: one of some classes, or a type."""
    names = class_names(hint)
    return f"a class_path: {' or '.join(names)}" if names else describe(hint)
