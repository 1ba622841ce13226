"""A place in a configuration: its dotted key, and what is known to belong there."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llm_train.cli import schema
from llm_train.cli.schema import Owner


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a message is about.

    Attributes:
        path: dotted key so far; "" at the top.
        owner: what has the settings there.
        hint: type of the value there.
        raw: what the files say there, to number list items.
    """

    path: str
    owner: Owner | None
    hint: Any = Any
    raw: Any = None

    def inside(self, key: str) -> Place:
        """The setting ``key`` of this place's owner."""
        raw = self.raw
        for name in key.split("."):
            raw = raw.get(name) if isinstance(raw, Mapping) else None
        hint = schema.type_at(self.owner, key)
        owner = hint if schema.is_group(hint) else None
        return Place(path=join(self.path, key), owner=owner, hint=hint, raw=raw)

    def instance(self, name: str, rest: str) -> Place:
        """The settings of class ``name``, which was chosen here, perhaps as one of a list."""
        path, raw = self.path, self.raw
        if isinstance(raw, list):
            index = item_number(raw, name, rest)
            path, raw = (path, None) if index is None else (f"{path}[{index}]", raw[index])
        raw = raw.get("init_args") if isinstance(raw, Mapping) else None
        return Place(path=f"{path}.init_args", owner=schema.loaded(name), raw=raw)


def item_number(items: Sequence[Any], name: str, rest: str) -> int | None:
    """Which item of a list names that class and has what the complaint is about."""
    short = name.rpartition(".")[2]
    fits = [
        index
        for index, item in enumerate(items)
        if str(item.get("class_path") if isinstance(item, Mapping) else item).endswith(short)
    ]
    quoted = re.search(r"(?:Option '|Parser key \")([^'\"]+)", rest)
    if len(fits) > 1 and quoted:
        fits = [index for index in fits if quoted[1] in (items[index].get("init_args") or {})]
    return fits[0] if fits else None


def join(path: str, key: str) -> str:
    """A dotted key below another one; "" is the top."""
    return f"{path}.{key}" if path else key
