"""From words on a command line to files and options: ``-c FILE`` in every spelling, checked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llm_train.cli.spelling import closest, expanded, texts
from llm_train.cli.walk import Layer
from llm_train.errors import ConfigError
from llm_train.preset_files import presets, resolved
from llm_train.runtime import yaml12

_ACTIONS = ("--print_config", "--help", "-h")


def spell_out(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits files from options, each as ``--key=value`` or ``--key``.

    Raises:
        ConfigError: something is neither, or lacks its value.

    >>> spell_out(["--seed", "3", "-ca.yaml", "--config=b.yaml", "--print_config"])
    (['a.yaml', 'b.yaml'], ['--seed=3', '--print_config'])
    """
    files: list[str] = []
    options: list[str] = []
    words = iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        if word.startswith("-c"):
            name, value, equals = "-c", word[2:].removeprefix("="), word[2:]
        elif not word.startswith("-"):
            raise ConfigError(
                f"{word!r} is not an option; a configuration file is given as -c {word}"
            )
        if not equals and name not in _ACTIONS:
            value = next(words, "--")
            if value.startswith("--"):
                raise ConfigError(f"{name} needs a value; write {name}=VALUE")
        value = expanded(value)
        if name in ("-c", "--config"):
            files.append(resolved(value))
        else:
            options.append(word if name in _ACTIONS else f"{name}={value}")
    return files, options


def of(files: Sequence[str], options: Sequence[str]) -> Iterator[Layer]:
    """What each file and then each option sets.

    Raises:
        ConfigError: a file is missing or unreadable, is not a mapping, or has a key twice.
    """
    for file in files:
        yield Layer(_read(file), option=False)
    for option in options:
        name, _, value = option.removeprefix("--").partition("=")
        *path, last = name.removesuffix("+").split(".")
        if last == "help" or option.startswith(_ACTIONS):
            continue
        values: dict[str, Any] = {last: [value] if name.endswith("+") else value}
        for key in reversed(path):
            values = {key: values}
        yield Layer(values, option=True)


def load(text: str) -> Any:
    """What a file or the right of an ``=`` holds, its paths written out."""
    return texts(expanded, yaml12.load(text))


def _read(file: str) -> dict[str, Any]:
    if not Path(file).is_file():
        found = "a directory" if Path(file).is_dir() else "no such file"
        meant = closest(Path(file).stem, list(presets()))
        way_out = f"did you mean -c preset:{meant}?" if meant else "llm-train presets lists some"
        raise ConfigError(f"-c {file}: {found}; {way_out}")
    try:
        text = Path(file).read_text(encoding="utf-8")
        twice = [f"{problem} of {file}; remove one" for problem in yaml12.duplicates(text)]
        if twice:
            raise ConfigError("\n".join(twice))
        value = load(text)
    except (yaml12.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"-c {file} is not valid YAML: {yaml12.where(error)}") from error
    if not isinstance(value, dict):
        kind = "is empty" if value is None else f"holds a {type(value).__name__}"
        raise ConfigError(f"-c {file} {kind}; write settings as in 'budget: 2000 steps'")
    if "keys" in value:
        raise ConfigError(
            f"-c {file} is a sweep, not a configuration; write llm-train sweep {file}"
        )
    return value
