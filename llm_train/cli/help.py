"""What ``llm-train VERB --help`` prints, and what a shell may write next, from the schema.

Help has one entry for each setting that has an effect, instead of argparse's listing, which names
every class of Lightning and every Trainer argument that another key replaces here, in five hundred
lines. A shell asks through argcomplete for verbs, flags, settings and presets, once
``eval "$(register-python-argcomplete llm-train)"`` in bash or zsh has switched that on.
"""

import argparse
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

from llm_train import verbs
from llm_train.preset_files import presets

_COLUMN = 34
_TITLE = "settings, each a YAML key and an option"
_CLASSES = """\
Where CLASS is asked for, write class_path and init_args; short names are enough:
  optimizer: {class_path: AdamW, init_args: {learning_rate: 3e-4}}
  --model.optimizer.help=AdamW     the settings of a class (any key that takes one)
  --print_config                   the resolved configuration, which runs as it is"""


def settings_help(schema: Mapping[str, Any]) -> str:
    """Lists the settings of a JSON schema of the configuration."""
    sections: dict[str, list[argparse.Action]] = {}
    for key, setting in settings(schema):
        top = key.partition(".")[0] if "." in key else _TITLE
        text = setting["description"].replace("%", "%%")
        head = [f"--{key}={setting['title']}"]
        sections.setdefault(top, []).append(argparse.Action(head, "", nargs=0, help=text))
    width = min(100, shutil.get_terminal_size((100, 24)).columns)
    formatter = argparse.HelpFormatter("", max_help_position=_COLUMN, width=width)
    for title, entries in sections.items():
        formatter.start_section(title)
        formatter.add_arguments(entries)
        formatter.end_section()
    return f"{formatter.format_help()}\n{_CLASSES}\n"


def settings(group: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every setting of a schema that is no group, by its dotted key."""
    for name, setting in group["properties"].items():
        if "title" in setting:
            yield f"{prefix}{name}", setting
        else:
            yield from settings(setting, f"{prefix}{name}.")


COMPLETION = "_ARGCOMPLETE"  # set by the shell's function


def complete(line: str, schema: Mapping[str, Any]) -> None:
    """Writes the possible next words to where argcomplete is read, and ends the process.

    Args:
        line: what has been typed so far.
        schema: the JSON schema of a configuration.
    """
    import argcomplete

    parser = argparse.ArgumentParser(allow_abbrev=False)
    names = parser.add_subparsers()
    for name, summary in verbs.summaries().items():
        command = names.add_parser(name, help=summary, allow_abbrev=False)
        if name not in line.split()[1:2]:
            continue  # its flags are of no use, and to import it takes time
        verb = verbs.find(name)
        verb.add_flags(command)
        if verb.reads == "settings":
            for key, _ in settings(schema):
                command.add_argument(f"--{key}")
            chosen: Any = command.add_argument("-c", "--config", action="append")
            chosen.completer = _configurations
    argcomplete.autocomplete(parser)


def _configurations(prefix: str, **_: object) -> list[str]:
    from argcomplete.completers import FilesCompleter

    return [*(f"preset:{name}" for name in presets()), *FilesCompleter(("yaml", "yml"))(prefix)]
