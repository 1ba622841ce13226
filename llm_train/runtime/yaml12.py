"""The one way in which the package reads and writes YAML: version 1.2, where words are words.

``010`` is ten, ``1:30``, ``yes`` and ``2024-05-01`` are text, ``3e-4`` is a number, and no key may
stand twice in one mapping. What ``dump`` writes, ``load`` reads as the same values.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.representer import SafeRepresenter

__all__ = ["YAMLError", "dump", "duplicates", "load", "load_or_text", "where"]


class _Constructor(SafeConstructor):
    """The safe constructor, except that a date stays text."""


_Constructor.add_constructor("tag:yaml.org,2002:timestamp", SafeConstructor.construct_yaml_str)


class _Representer(SafeRepresenter):
    """The safe representer, except that a float is one for readers of YAML 1.1 too."""

    def represent_float(self, data: float) -> ScalarNode:
        node = super().represent_float(data)
        node.value = re.sub(r"^(-?[0-9]+)e", r"\1.0e", node.value)
        return node


_Representer.add_representer(float, _Representer.represent_float)


def _yaml() -> YAML:
    """A reader and writer; it keeps state, so that each use has its own."""
    yaml = YAML(typ="safe", pure=True)  # the parser in C knows YAML 1.1 only
    yaml.Constructor = _Constructor
    yaml.Representer = _Representer
    yaml.default_flow_style = False
    # Its declared type is that of its default, None.
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = 100
    return yaml


def load(text: str) -> Any:
    """Reads one value, from a file or from the right of an ``=``.

    >>> load("{lr: 3e-4, fused: on, tied: true, heads: 010, time: 1:30}")
    {'lr': 0.0003, 'fused': 'on', 'tied': True, 'heads': 10, 'time': '1:30'}
    """
    return _yaml().load(text)


def load_or_text(text: str) -> Any:
    """A value, or the text itself where it is no YAML, as a pattern such as ``[a-z]+``."""
    try:
        return load(text)
    except YAMLError:
        return text


def dump(value: Any) -> str:
    """Writes a value in blocks, keys in their order.

    >>> print(dump({"b": "3e-4", "a": ["yes", 1]}), end="")
    b: '3e-4'
    a:
    - yes
    - 1
    """
    stream = io.StringIO()
    _yaml().dump(value, stream)
    return stream.getvalue().removesuffix("...\n")


def duplicates(text: str) -> Iterator[str]:
    """Every key that stands twice in one mapping, as a sentence with both lines."""
    root = _yaml().compose(text)
    if root is not None:
        yield from _duplicates(root, "", set())


def _duplicates(node: Node, path: str, seen: set[int]) -> Iterator[str]:
    if id(node) in seen:  # an alias: reported where it is defined
        return
    seen.add(id(node))
    if isinstance(node, MappingNode):
        lines: dict[str, int] = {}
        for key, child in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            dotted = f"{path}.{name}" if path else name
            if name in lines:
                yield f"{dotted} is written twice, in lines {lines[name]} and {line}"
            lines.setdefault(name, line)
            yield from _duplicates(child, dotted, seen)
    elif isinstance(node, SequenceNode):
        for index, child in enumerate(node.value):
            yield from _duplicates(child, f"{path}[{index}]", seen)


def where(error: Exception) -> str:
    """What is wrong with a text, with line and column where they are known."""
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    return " ".join(str(error).split())
