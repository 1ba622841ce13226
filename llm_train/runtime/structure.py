"""Plain values from a file as the dataclass that they stand for, each value compared with its type.

A manifest may have been written by another version, cut by a full disk, or forged: what it says is
used as a size, a name and a position, so that a wrong type would fail far from the file.
"""

import dataclasses
from collections.abc import Mapping
from copy import deepcopy
from functools import lru_cache
from types import MappingProxyType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")


def nested(
    values: Mapping[str, Any], below: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    """Dotted keys as YAML nests them, over what there is.

    >>> nested({"a.c": 3}, {"a": {"b": 1, "c": 2}})
    {'a': {'b': 1, 'c': 3}}
    """
    found = deepcopy(dict(below))
    for key, value in values.items():
        place = found
        *path, last = key.split(".")
        for part in path:
            place = place.setdefault(part, {})
        place[last] = deepcopy(value)
    return found


def flat(value: object, prefix: str = "") -> dict[str, Any]:
    """The reverse of ``nested``.

    >>> flat({"a": {"b": 1, "c": {}}, "d": [2]})
    {'a.b': 1, 'a.c': {}, 'd': [2]}
    """
    if not isinstance(value, Mapping) or not value:
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return found


def structure(kind: type[T], plain: object, where: str = "") -> T:
    """Builds the dataclass ``kind``; keys that it does not have are left out.

    Args:
        kind: of the result.
        plain: values as JSON gives them.
        where: the key of ``plain`` in its file; "" is the whole.

    Raises:
        ValueError: a key is missing or its value is of another type, by name.
    """
    if not isinstance(plain, Mapping):
        raise ValueError(f"{where or 'it'} is not a mapping")
    hints = _hints(kind)  # type: ignore[arg-type]
    missing = [name for name in hints if name not in plain]
    if missing:
        raise ValueError(f"{where or 'it'} has no {', '.join(missing)}")
    return kind(**{n: _value(hints[n], plain[n], f"{where}.{n}".lstrip(".")) for n in hints})


@lru_cache  # a manifest may list 60,000 files
def _hints(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _value(hint: Any, plain: Any, where: str) -> Any:
    # A size or a position of more bits would fail in whatever it is given to.
    huge = isinstance(plain, int) and abs(plain) >= 1 << 63
    if isinstance(hint, type) and type(plain) is hint and not huge:
        return plain
    origin, inner = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint):
        return structure(hint, plain, where)  # type: ignore[arg-type]
    if hint is Any:
        return plain
    if origin in (dict, Mapping) and isinstance(plain, dict):
        names = get_args(inner[0]) if get_origin(inner[0]) is Literal else ()
        if all(name in plain for name in names):
            return {k: _value(inner[1], v, f"{where}.{k}") for k, v in plain.items()}
    elif origin is list and isinstance(plain, list):
        return [_value(inner[0], v, f"{where}[{i}]") for i, v in enumerate(plain)]
    elif origin is None or origin is UnionType:
        kinds = tuple({float: int | float}.get(kind, kind) for kind in inner or (hint,))
        if isinstance(plain, kinds) and not isinstance(plain, bool) and not huge:
            return plain
    raise ValueError(f"{where}={str(plain)[:40]} is not a {getattr(hint, '__name__', hint)}")
