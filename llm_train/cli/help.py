"""What ``llm-train VERB --help`` prints: one entry for each setting that has an effect.

Instead of argparse's listing, which names every class of Lightning and every Trainer argument that
another key replaces here, in five hundred lines.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, get_args, get_origin

from llm_train.cli import schema
from llm_train.units import Duration

_COLUMN = 34
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
    "logger": "loggers beside metrics.jsonl: WandB, or one of Lightning's",
    "callbacks": "list of CLASS: callbacks of Lightning or your own",
    "max_time": "stop after DD:HH:MM:SS",
    "limit_val_batches": "validate on so many batches, or on that fraction",
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
    actions: Iterable[Any],
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
    known = set(schema.all_keys(roots))
    lines, section = ["settings, each a YAML key and an option:"], ""
    for action in actions:
        key = action.dest
        if key not in known or key in hidden or schema.is_group(schema.setting_at(roots, key).hint):
            continue
        top = key.split(".")[0]
        if top != section and "." in key:
            lines.append("")
        section = top if "." in key else section
        hint, needed = schema.setting_at(roots, key)
        lines.extend(_entry(action, hint, choices.get(key, ()), needed))
    return "\n".join([*lines, "", _CLASSES, ""])


def _entry(action: Any, hint: Any, choices: Sequence[str], needed: bool) -> Iterator[str]:
    head = f"  --{action.dest}={_placeholder(hint, choices)}"
    width = min(100, shutil.get_terminal_size((100, 24)).columns)
    indent = " " * _COLUMN
    body = textwrap.wrap(_text(action, hint, choices, needed), width - _COLUMN)
    if len(head) + 2 > _COLUMN:
        yield head
    else:
        body[0:1] = [f"{head:{_COLUMN}}{body[0]}"] if body else [head]
        yield body.pop(0)
    for line in body:
        yield indent + line


def _placeholder(hint: Any, choices: Sequence[str]) -> str:
    if choices:
        return "NAME"
    optional = [part for part in get_args(hint) if part is not type(None)]
    if len(optional) == 1 and type(None) in get_args(hint):
        hint = optional[0]
    names = {int: "INT", float: "NUMBER", bool: "true|false", str: "TEXT", Duration: "DURATION"}
    if hint in names:
        return names[hint]
    if (literal := schema.choices_of(hint)) and schema.describe(hint).startswith("one of"):
        return "|".join(literal)
    if get_origin(hint) in (list, tuple):
        return "LIST"
    return "CLASS" if isinstance(hint, type) else "VALUE"


def _text(action: Any, hint: Any, choices: Sequence[str], needed: bool) -> str:
    group, _, name = action.dest.partition(".")
    text = " ".join(str(action.help or "").replace("``", "").split())
    if group == "trainer":
        text = _TRAINER.get(name, text.split(". ")[0].partition(" Default:")[0])
        if name in ("logger", "callbacks", "profiler", "plugins"):
            return text
    text = text.rstrip(".")
    known = list(choices) or ([] if schema.choices_of(hint) else schema.class_names(hint))
    if 0 < len(known) <= _LONG:
        text += f": {', '.join(known)}"
    path = getattr(action.default, "class_path", None)
    default = path.rpartition(".")[2] if isinstance(path, str) else action.default
    if needed:
        return f"{text} (required)"
    if default is None or not isinstance(default, bool | int | float | str | Duration):
        return text
    return f"{text} (default {_plain(default)})"


def _plain(default: Any) -> str:
    return str(default).lower() if isinstance(default, bool) else str(default)
