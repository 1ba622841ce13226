"""What ``llm-train VERB --help`` prints: one entry for each setting that has an effect.

Instead of argparse's listing, which names every class of Lightning and every Trainer argument that
another key replaces here, in five hundred lines.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

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
