"""What ``llm-train VERB --help`` prints: one entry for each setting that has an effect.

Instead of argparse's listing, which names every class of Lightning and every Trainer argument that
another key replaces here, in five hundred lines.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import get_origin

from llm_train.cli import schema
from llm_train.units import Duration

_COLUMN = 34
_TITLE = "settings, each a YAML key and an option"
_CLASSES = """\
Where CLASS is asked for, write class_path and init_args; short names are enough:
  optimizer: {class_path: AdamW, init_args: {learning_rate: 3e-4}}
  --model.optimizer.help=AdamW     the settings of a class (any key that takes one)
  --print_config                   the resolved configuration, which runs as it is"""
_LONG = 12  # more classes than this are not listed
# Lightning's own words where they promise what does not hold here, or say little.
_TRAINER = {
    "accelerator": "kind of device",
    "strategy": "how ranks work together; for options CLASS: DDP, FSDP, LocalSGD or ZeRO",
    "devices": "devices per node: a count, a list of indices, or auto",
    "num_nodes": "machines; torchrun says it otherwise",
    "precision": "of the arithmetic; master weights stay fp32 but for bf16-true (default 32-true)",
    "logger": "loggers alongside metrics.jsonl: WandB, or one of Lightning's",
    "callbacks": "list of CLASS: callbacks of Lightning or your own",
    "max_time": "stop after DD:HH:MM:SS",
    "log_every_n_steps": "steps between log points (default 10)",
    "enable_progress_bar": "show progress (default true)",
    "gradient_clip_val": "largest global norm of the gradients",
    "deterministic": "refuse operators that are not deterministic",
    "benchmark": "let cuDNN try its algorithms",
    "profiler": "simple, advanced, pytorch, or CLASS",
    "plugins": "plugins of Lightning",
    "default_root_dir": "run directory (default runs/NAME of the first YAML file)",
}


def settings_help(
    actions: Iterable[argparse.Action],
    roots: Mapping[str, schema.Setting],
    hidden: Collection[str],
    choices: Mapping[str, Sequence[str]],
) -> str:
    """Lists the settings.

    Args:
        actions: the parser's, with ``dest``, ``help``, ``default`` and ``required``.
        roots: type of each top-level key.
        hidden: dotted keys to leave out.
        choices: values that we support, by key, where the type allows more.
    """
    known = schema.flattened(roots)
    sections: dict[str, list[argparse.Action]] = {}
    for action in actions:
        setting = known.get(action.dest)
        if setting and action.dest not in hidden and not schema.is_group(setting.hint):
            allowed = choices.get(action.dest, ())
            head = f"--{action.dest}={_placeholder(setting.hint, allowed)}"
            text = _text(action, setting, allowed).replace("%", "%%")
            top = action.dest.partition(".")[0] if "." in action.dest else _TITLE
            sections.setdefault(top, []).append(argparse.Action([head], "", nargs=0, help=text))
    width = min(100, shutil.get_terminal_size((100, 24)).columns)
    formatter = argparse.HelpFormatter("", max_help_position=_COLUMN, width=width)
    for title, entries in sections.items():
        formatter.start_section(title)
        formatter.add_arguments(entries)
        formatter.end_section()
    return f"{formatter.format_help()}\n{_CLASSES}\n"


def _placeholder(hint: schema.Hint, choices: Sequence[str]) -> str:
    if choices:
        return "NAME"
    if type(None) in (alternatives := schema.parts(hint)) and len(alternatives) == 2:
        (hint,) = (part for part in alternatives if part is not type(None))
    names = {int: "INT", float: "NUMBER", bool: "true|false", str: "TEXT", Duration: "DURATION"}
    if hint in names:
        return names[hint]
    if (literal := schema.choices_of(hint)) and schema.describe(hint).startswith("one of"):
        return "|".join(literal)
    if get_origin(hint) in (list, tuple):
        return "LIST"
    return "CLASS" if isinstance(hint, type) else "VALUE"


def _text(action: argparse.Action, setting: schema.Setting, choices: Sequence[str]) -> str:
    group, _, name = action.dest.partition(".")
    text = " ".join(str(action.help or "").replace("``", "").split())
    if group == "trainer":
        text = _TRAINER.get(name, text.split(". ")[0].partition(" Default:")[0])
        if name in ("logger", "callbacks", "profiler", "plugins"):
            return text
    text = text.rstrip(".")
    hint = setting.hint
    known = list(choices) or ([] if schema.choices_of(hint) else schema.class_names(hint))
    if 0 < len(known) <= _LONG:
        text += f": {', '.join(known)}"
    if setting.required:
        return f"{text} (required)"
    default = str(action.default)
    if isinstance(action.default, bool):
        default = default.lower()
    plain = isinstance(action.default, int | float | str | Duration)
    return f"{text} (default {default})" if plain else text
