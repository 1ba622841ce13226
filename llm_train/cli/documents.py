"""YAML as people expect it: no key twice, ``3e-4`` is a number, ``on`` and ``no`` are words.

PyYAML follows YAML 1.1, where ``3e-4`` is text and ``on`` is true, and keeps the last of two equal
keys without a word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import yaml

from llm_train.errors import ConfigError

_OURS = ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp")


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2; dates stay text."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag not in _OURS]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}

Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"""^(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
             |[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+
             |[-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?
             |[-+]?\.(?:inf|Inf|INF)
             |\.(?:nan|NaN|NAN))$""",
        re.VERBOSE,
    ),
    list("-+0123456789."),
)


def load(text: str) -> Any:
    """Reads one YAML value, from a file or from the right of an ``=``.

    >>> load("{lr: 3e-4, fused: on, tied: true}")
    {'lr': 0.0003, 'fused': 'on', 'tied': True}
    """
    return yaml.load(text, Loader=Loader)


def spell_out(arguments: Sequence[str]) -> list[str]:
    """Brings every spelling of the configuration option to ``-c FILE``, files before options.

    A parser works from left to right, so an option written before ``-c`` would lose to the file.

    Raises:
        ConfigError: a file is missing or unreadable, is not a mapping, or has a key twice.

    >>> spell_out(["--seed=3"])
    ['--seed=3']
    """
    expanded: list[str] = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name == "--config":
            expanded.extend(["-c", value] if equals else ["-c"])
        elif argument.startswith("-c") and len(argument) > 2:
            expanded.extend(["-c", argument[2:].removeprefix("=")])
        else:
            expanded.append(argument)
    for file in files(expanded):
        _check_document(file)
    return _files_first(expanded)


def _files_first(arguments: list[str]) -> list[str]:
    first: list[str] = []
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == "-c":
            first.extend([word, *islice(words, 1)])
        else:
            rest.append(word)
    return first + rest


def files(arguments: Sequence[str]) -> list[str]:
    """What follows each ``-c``."""
    return [value for option, value in pairwise(arguments) if option == "-c"]


def merged(arguments: Sequence[str]) -> dict[str, Any]:
    """The files laid over each other, later over earlier, as a help for naming places."""
    result: dict[str, Any] = {}
    for file in files(arguments):
        _overlay(result, load(Path(file).read_text(encoding="utf-8")))
    return result


def _overlay(below: dict[str, Any], above: Mapping[str, Any]) -> None:
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(below.get(key), dict):
            _overlay(below[key], value)
        else:
            below[key] = value


def _check_document(file: str) -> None:
    if not Path(file).is_file():
        raise ConfigError(f"-c {file}: no such file; configs/ holds the ready-made ones")
    try:
        text = Path(file).read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=Loader)
        duplicates = [] if node is None else list(_duplicates(node, "", set()))
        value = load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"-c {file} is not valid YAML: {_where(error)}") from error
    if duplicates:
        raise ConfigError("\n".join(f"{problem} of {file}; remove one" for problem in duplicates))
    if not isinstance(value, dict):
        kind = "is empty" if value is None else f"holds a {type(value).__name__}"
        raise ConfigError(f"-c {file} {kind}; write settings as in 'budget: 2000 steps'")


def _duplicates(node: yaml.Node, path: str, seen: set[int]) -> Iterator[str]:
    if id(node) in seen:  # an alias: reported where it is defined
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, child in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            dotted = f"{path}.{name}" if path else name
            if name in lines:
                yield f"{dotted} is written twice, in lines {lines[name]} and {line}"
            lines.setdefault(name, line)
            yield from _duplicates(child, dotted, seen)
    elif isinstance(node, yaml.SequenceNode):
        for index, child in enumerate(node.value):
            yield from _duplicates(child, f"{path}[{index}]", seen)


def _where(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    return " ".join(str(error).split())
