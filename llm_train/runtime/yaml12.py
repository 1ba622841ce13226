"""The one way in which the package reads and writes YAML: version 1.2, where words are words.

``010`` is ten, ``1:30``, ``yes`` and ``2024-05-01`` are text, ``3e-4`` is a number, and no key may
stand twice in one mapping. What ``dump`` writes, ``load`` reads as the same values.

A text of a few hundred characters can stand for more memory than a machine has, since an alias may
hold aliases. So a text is measured before anything is built of it.
"""

import io
import re
from collections.abc import Iterator
from enum import Enum
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.representer import SafeRepresenter

__all__ = ["YAMLError", "dump", "duplicates", "load", "load_or_text", "where"]

# The largest configuration of this repository has 2,000 characters, 200 values and 9 levels.
_MOST_CHARACTERS, _MOST_VALUES, _MOST_LEVELS, _MOST_DIGITS = 1 << 18, 100_000, 50, 400


class _Constructor(SafeConstructor):
    """The safe constructor, except that a date stays text and a number has an end."""

    def construct_yaml_int(self, node: ScalarNode) -> int:
        if len(node.value) > _MOST_DIGITS:
            raise _refusal(node, f"a number has more than {_MOST_DIGITS} digits; shorten it")
        return int(super().construct_yaml_int(node))


_Constructor.add_constructor("tag:yaml.org,2002:int", _Constructor.construct_yaml_int)
_Constructor.add_constructor("tag:yaml.org,2002:timestamp", SafeConstructor.construct_yaml_str)


class _Representer(SafeRepresenter):
    """The safe representer, except that a float is one for readers of YAML 1.1 too."""

    def represent_float(self, data: float) -> ScalarNode:
        node = super().represent_float(data)
        node.value = re.sub(r"^(-?[0-9]+)e", r"\1.0e", node.value)
        return node

    def represent_enum(self, data: Enum) -> Node:
        node: Node = self.represent_data(data.value)
        return node


_Representer.add_representer(float, _Representer.represent_float)
_Representer.add_multi_representer(Enum, _Representer.represent_enum)  # Lightning's defaults


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

    Raises:
        YAMLError: it is none, or one that is larger than any configuration.
    """
    yaml = _yaml()
    root = _composed(yaml, text)
    try:
        return None if root is None else yaml.constructor.construct_document(root)
    except (ValueError, KeyError) as error:  # a tag on what it does not fit, as !!bool maybe
        raise YAMLError(f"a value does not fit its tag ({error}); remove the tag") from None


def load_or_text(text: str) -> Any:
    """A value, or the text itself where it is no YAML, as a pattern such as ``[a-z]+``."""
    try:
        return load(text)
    except YAMLError:
        return text


def dump(value: Any, *, flow: bool = False) -> str:
    """Writes a value, keys in their order, in blocks or in brackets.

    >>> print(dump({"b": "3e-4", "a": ["yes", 1]}), end="")
    b: '3e-4'
    a:
    - yes
    - 1
    """
    stream, yaml = io.StringIO(), _yaml()
    yaml.default_flow_style = flow
    yaml.dump(value, stream)
    return stream.getvalue().removesuffix("...\n")


def duplicates(text: str) -> Iterator[str]:
    """Every key that stands twice in one mapping, as a sentence with both lines."""
    root = _composed(_yaml(), text)
    if root is not None:
        yield from _duplicates(root, "", set())


def _composed(yaml: YAML, text: str) -> Node | None:
    """The nodes of a text, once they are known to be few."""
    if len(text) > _MOST_CHARACTERS:
        raise YAMLError(f"longer than {_MOST_CHARACTERS:,} characters; a configuration is shorter")
    try:
        root: Node | None = yaml.compose(text)
    except RecursionError:
        raise YAMLError(f"nested deeper than {_MOST_LEVELS} levels; write it flatter") from None
    if root is not None:
        _measure(root, {})
    return root


def _measure(node: Node, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Values and levels of a node with all aliases written out.

    A definition stands before its aliases, so that each node is measured once.
    """
    if id(node) in known:
        values, levels = known[id(node)]
    else:
        known[id(node)] = 0, _MOST_LEVELS  # if it meets itself on the way
        inner = node.value if isinstance(node, SequenceNode) else ()
        if isinstance(node, MappingNode):
            inner = [each for pair in node.value for each in pair]
        sizes = [_measure(each, known) for each in inner]
        values = 1 + sum(size for size, _ in sizes)
        levels = 1 + max((depth for _, depth in sizes), default=0)
        known[id(node)] = values, levels
    if levels > _MOST_LEVELS:
        raise _refusal(node, f"nested deeper than {_MOST_LEVELS} levels; write it flatter")
    if values > _MOST_VALUES:
        raise _refusal(node, f"stands for more than {_MOST_VALUES:,} values; remove aliases")
    return values, levels


def _refusal(node: Node, problem: str) -> YAMLError:
    return MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


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
