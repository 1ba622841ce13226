"""From arguments to parts; the only file that parses with jsonargparse.

LightningCLI, subclassed once to close its traps: no abbreviations, no automatic optimizer, no
hyper-parameters in or out of checkpoints, no import of code that was not allowed, no usage dump,
and all parts that refuse their settings reported at once, each with its key.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonargparse
from jsonargparse import ArgumentParser, Namespace
from jsonargparse._common import parsing_settings
from jsonargparse.typing import register_type

from llm_train.cli.parts import Builder
from llm_train.cli.schema import MODE, Setting, is_group, is_of_lightning
from llm_train.cli.spelling import closest, expanded, texts
from llm_train.cli.walk import Layer, Walk
from llm_train.errors import ConfigError
from llm_train.preset_files import presets, resolved
from llm_train.runtime import yaml12
from llm_train.units import Duration

ALLOWED_IMPORTS = ("llm_train", "torch", "lightning")
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


def layers(files: Sequence[str], options: Sequence[str]) -> Iterator[Layer]:
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


def _load(text: str) -> Any:
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
        value = _load(text)
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


def _new_parser(roots: Mapping[str, Setting]) -> ArgumentParser:
    """A parser with our keys alongside Trainer's, the task's and the data's own arguments."""
    parser = ArgumentParser(
        prog="llm-train", allow_abbrev=False, exit_on_error=False, parser_mode=MODE
    )
    parser.add_argument("-c", "--config", action="config")
    for key, root in roots.items():
        if is_of_lightning(root.hint):
            # `check` must work without the devices, which a Trainer asks for.
            made = root.hint.__name__ != "Trainer"
            parser.add_class_arguments(
                root.hint, key, instantiate=made, fail_untyped=False, sub_configs=True
            )
        else:
            parser.add_argument(
                f"--{key}",
                type=root.hint,
                default=root.default,
                required=root.required and not is_group(root.hint),  # of a group, keys are
                help=root.help or None,
            )
    return parser


def parse(
    files: Sequence[str],
    options: Sequence[str],
    roots: Mapping[str, Setting],
    choices: Mapping[str, Sequence[str]],
    allow_import: Sequence[str] = (),
) -> tuple[Namespace, str, Walk]:
    """Parses what stands below ``roots``: built, the same as YAML, and what was found on the way.

    Args:
        files: as ``spell_out`` gives them.
        options: as ``spell_out`` gives them.
        roots: the top level.
        choices: values that we support, by key, where the type allows more.
        allow_import: modules that a ``class_path`` may import besides our own, torch and lightning.

    Raises:
        ConfigError: anything wrong with a key or value; one line for each problem.
    """
    with _parsing(allow_import) as allowed:
        walk = Walk(roots, choices, allowed)
        if not any(option.split("=")[0].endswith(("-h", "help")) for option in options):
            walk.require_sound(list(layers(files, options)))
        # Files come first, because the parser works from left to right and an option wins.
        words = [word for file in files for word in ("-c", file)]
        parser = _new_parser(roots)
        try:
            config = parser.parse_args([*words, *options])
        except argparse.ArgumentError as error:
            raise ConfigError(" ".join(str(error).split())) from error
        builder = Builder(walk.chosen, walk.owners)
        built = parser.instantiate(config, instantiators=[(builder, object, True)])
        builder.raise_failures()
        return built, parser.dump(config, skip_unset=False), walk


@contextmanager
def _parsing(allow_import: Sequence[str]) -> Iterator[list[str]]:
    """Sets up jsonargparse, whose settings are global, and yields what may be imported."""
    for name in allow_import:
        if not all(part.isidentifier() for part in name.split(".")) or name == "jsonargparse":
            raise ConfigError(f"--allow-import {name} cannot be allowed; give the name of a module")
    allowed = [*ALLOWED_IMPORTS, *allow_import]
    before = dict(parsing_settings)
    jsonargparse.set_parsing_settings(
        import_path_denylist=["*"], import_path_allowlist=allowed, validate_defaults=False
    )
    register_type(Duration, str, Duration.parse)
    jsonargparse.set_loader(MODE, _load, exceptions=(yaml12.YAMLError,))
    jsonargparse.set_dumper(MODE, yaml12.dump)
    try:
        yield allowed
    finally:  # whoever else uses jsonargparse in this process finds it as it was
        parsing_settings.update(before)
