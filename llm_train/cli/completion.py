"""What a shell may write next, asked by argcomplete: verbs, flags, settings, classes and presets.

``eval "$(register-python-argcomplete llm-train)"`` in bash or zsh switches it on.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

from llm_train import verbs
from llm_train.cli.help import settings
from llm_train.preset_files import presets

VARIABLE = "_ARGCOMPLETE"  # set by the shell's function


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
        if verb.takes_settings:
            for option, words in _options(schema):
                command.add_argument(option, choices=words or None)
            chosen: Any = command.add_argument("-c", "--config", action="append")
            chosen.completer = _configurations
    argcomplete.autocomplete(parser)


def _configurations(prefix: str, **_: object) -> list[str]:
    from argcomplete.completers import FilesCompleter

    return [*(f"preset:{name}" for name in presets()), *FilesCompleter(("yaml", "yml"))(prefix)]


def _options(schema: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Each setting with the words that it takes, and what may be set of its classes."""
    for key, setting in settings(schema):
        forms = setting.get("anyOf", [setting])
        yield f"--{key}", [str(word) for form in forms for word in form.get("enum", ())]
        refs = [form["$ref"].rpartition("/")[2] for form in forms if "$ref" in form]
        found = [schema["definitions"][ref]["properties"]["init_args"] for ref in refs]
        for name in dict.fromkeys(name for arguments in found for name in arguments["properties"]):
            yield f"--{key}.init_args.{name}", []
