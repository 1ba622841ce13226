"""Rows to text: a field, a nested field or a template over several, the same for every format."""

import string
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

from llm_train.data.base import Document, Skipped
from llm_train.errors import ConfigError

Item = Document | Skipped
_MISSING = object()
_KINDS = {type(None): "null", bool: "true or false", int: "a number", float: "a number"}
_KINDS |= {list: "a list", dict: "an object", str: "a text"}
_SHOWN = 12  # names of fields in a message


@dataclass(frozen=True, kw_only=True)
class RowText:
    """How a row becomes text, and which rows do.

    Attributes:
        field: a name, a path into nested fields (``a.b.c``), or a template (``"{title} {body}"``).
        where: field to the values that it may have; other rows are skipped.
    """

    field: str
    where: Mapping[str, list[str]]

    def __post_init__(self) -> None:
        self._pieces  # noqa: B018 - which checks the field

    @property
    def is_template(self) -> bool:
        """Whether ``field`` has braces."""
        return "{" in self.field or "}" in self.field

    @cached_property
    def _pieces(self) -> list[tuple[str, str | None]]:
        """Literal text and the field after it."""
        if not self.is_template and self.field:
            return [("", self.field)]
        try:
            pieces = [*string.Formatter().parse(self.field)]
        except ValueError:
            pieces = []
        if not pieces or any(name == "" or spec or cast for _, name, spec, cast in pieces):
            raise ConfigError(
                f"field={self.field!r} must be the name of a field, as in text or data.text, "
                'or a template, as in "{title} {body}"'
            )
        return [(text, name) for text, name, _, _ in pieces]

    def columns(self, names: Collection[str]) -> list[str]:
        """Which columns of a table are needed.

        Raises:
            ValueError: one is not there.
        """
        wanted = [*(name for _, name in self._pieces if name), *self.where]
        heads = [name if name in names else name.partition(".")[0] for name in wanted]
        for name, head in zip(wanted, heads, strict=True):
            if head not in names:
                raise ValueError(
                    f"it has no column {name!r} but {_listed(names)}; correct field or where"
                )
        return list(dict.fromkeys(heads))

    def document(self, key: str, row: object) -> Item:
        """The row's text, or why it has none."""
        if not isinstance(row, dict):
            return Skipped(key, "not an object", f"it is {_kind(row)}")
        for name, allowed in self.where.items():
            if (found := _value(row, name)) is _MISSING or str(found) not in allowed:
                has = "missing" if found is _MISSING else repr(found)[:80]
                reason = f"{name!r} is not {' or '.join(allowed)}"
                return Skipped(key, reason, f"it is {has}", intended=True)
        texts = []
        for literal, path in self._pieces:
            if literal:
                texts.append(literal)
            if path is None:
                continue
            value = _value(row, path)
            if value is _MISSING:
                return Skipped(key, f"no field {path!r}", f"it has {_listed(_names(row))}")
            if isinstance(value, bytes):
                value = value.decode("utf-8", "surrogateescape")
            elif self.is_template and type(value) in (int, float):
                value = str(value)
            if not isinstance(value, str):
                return Skipped(key, f"{path!r} is not text", f"it is {_kind(value)}")
            texts.append(value)
        return document(key, "".join(texts))


def document(key: str, text: str) -> Item:
    """A document, unless it is empty or UTF-8 cannot hold it.

    Bytes that could not be decoded come as ``surrogateescape`` makes them.
    """
    if not text:
        return Skipped(key, "empty")
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError as error:
        byte = ord(text[error.start])
        if 0xDC80 <= byte <= 0xDCFF:
            detail = (
                f"byte {byte - 0xDC00:#x} at character {error.start}; set encoding if it is one"
            )
            return Skipped(key, "not UTF-8", detail)
        return Skipped(key, "lone surrogate", f"{byte:#x} at character {error.start}")
    return Document(key, text)


def decoded(key: str, data: bytes) -> Item:
    """The document that these bytes are in UTF-8."""
    return document(key, data.decode("utf-8", "surrogateescape"))


def _value(row: object, path: str) -> object:
    """What a path leads to; a name with a dot in it is found as well, and a number in a list."""
    head, dot, rest = path.partition(".")
    if isinstance(row, dict):
        if path in row:
            return row[path]
        inner = row.get(head, _MISSING)
    elif isinstance(row, list) and head.isdecimal() and int(head) < len(row):
        inner = row[int(head)]
    else:
        return _MISSING
    return _value(inner, rest) if dot else inner


def _names(row: dict[str, object]) -> list[str]:
    names = []
    for name, value in row.items():
        names += [f"{name}.{inner}" for inner in value] if isinstance(value, dict) else [name]
    return names


def _listed(names: Collection[str]) -> str:
    shown = ", ".join(map(str, list(names)[:_SHOWN]))
    return (shown + (", ..." if len(names) > _SHOWN else "")) or "no fields"


def _kind(value: object) -> str:
    return _KINDS.get(type(value), type(value).__name__)
