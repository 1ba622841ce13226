"""The configuration as a JSON schema, which editors and ``--help`` read: ``llm-train schema``.

Nothing is required in it, since an overlay is a configuration of a few keys, and a class of one's
own may have any settings. ``x-required`` is what a whole configuration needs, and ``title`` is what
``--help`` puts to the right of ``=``.
"""

import collections.abc
import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, get_args, get_origin

from llm_train.cli import schema
from llm_train.cli.schema import JSON, PLAIN, Hint, Owner, Setting
from llm_train.cli.walk import join
from llm_train.units import Duration

_ANY: JSON = {"type": "object"}
_CLOSED: JSON = {"type": "object", "additionalProperties": False}
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


def json_schema(
    roots: Owner, hidden: Collection[str], choices: Mapping[str, Sequence[str]]
) -> JSON:
    """Describes every file that ``-c`` may name.

    Args:
        roots: the top level.
        hidden: dotted keys to leave out.
        choices: values that we support, by key, where the type allows more.
    """
    classes: JSON = {}
    top = _Described(classes, hidden, choices).settings(roots)
    return {"$schema": "http://json-schema.org/draft-07/schema#", **top, "definitions": classes}


class _Described:
    """Writes types as schemas, and each class once, because a class may hold others of its kind."""

    def __init__(
        self, classes: JSON, hidden: Collection[str], choices: Mapping[str, Sequence[str]]
    ) -> None:
        self._classes, self._hidden, self._choices = classes, hidden, choices

    def settings(self, owner: Owner, path: str = "", from_call: int = 0) -> JSON:
        """A group of settings, of which whoever calls its class gives the first ``from_call``."""
        found = list(schema.settings_of(owner).items())[from_call:]
        keys = [(join(path, name), name, setting) for name, setting in found]
        known = {n: self._setting(s, key) for key, n, s in keys if key not in self._hidden}
        needed = [name for name, setting in found if setting.required]
        return {**_CLOSED, "properties": known, "x-required": needed}

    def _setting(self, setting: Setting, path: str) -> JSON:
        if schema.is_group(setting.hint):
            return self.settings(setting.hint, path)
        allowed = self._choices.get(path, ())
        options = self._type(setting.hint)
        if allowed:
            classes = (each for each in options if "$ref" in each or "properties" in each)
            options = [{"enum": list(allowed)}, *classes]
        return {
            "title": _placeholder(setting.hint, allowed),
            "description": _text(setting, path, allowed),
            **(options[0] if len(options) == 1 else {"anyOf": options}),
        }

    def _type(self, hint: Hint) -> list[JSON]:
        """The alternatives of a type; one that says nothing where anything may stand."""
        options: list[JSON] = []
        for part in schema.parts(hint):
            inner = [kind for kind in get_args(part) if kind is not Ellipsis]
            if part in PLAIN:
                options.append(PLAIN[part][2])
            elif get_origin(part) is Literal:
                options.append({"enum": inner})
            elif schema.is_group(part):
                options.append(self.settings(part))
            elif get_origin(part) in (dict, collections.abc.Mapping):
                options.append({"type": "object", "additionalProperties": self._any_of(inner[-1])})
            elif schema.is_list(part) and inner:
                fixed = get_origin(part) is tuple and len(inner) == len(get_args(part))
                size = dict.fromkeys(("minItems", "maxItems") * fixed, len(inner))
                options.append({"type": "array", "items": self._any_of(inner[0]), **size})
            elif schema.families(part):
                options += self._class(part)
            else:
                return [{}]
        return options

    def _any_of(self, hint: Hint) -> JSON:
        return {"anyOf": self._type(hint)}

    def _class(self, hint: Hint) -> list[JSON]:
        names = schema.class_names(hint)
        found = [(name, schema.subclass(hint, name)) for name in names]
        from_call = schema.arguments_of_call(hint)
        refs = [self._named(name, kind, from_call) for name, kind in found if kind]
        own = {"type": "string", "pattern": rf"^(?!llm_train\.)(.*\.)(?!({'|'.join(names)})$)"}
        return [
            {"enum": names},
            *refs,
            own,
            {"type": "object", "required": ["class_path"], "properties": {"class_path": own}},
            # More settings of the class that an earlier file has named.
            {**_CLOSED, "properties": {"init_args": _ANY}, "x-required": ["class_path"]},
        ]

    def _named(self, name: str, kind: type, from_call: int) -> JSON:
        key = f"{kind.__module__}.{name}"
        if key not in self._classes:
            self._classes[key] = {}  # a class of a class: it is being written
            path = {"anyOf": [{"enum": [name]}, {"type": "string", "pattern": rf"\.{name}$"}]}
            # Of a library's class the names must do, since its types lead to hundreds of others.
            names: JSON = {known: {} for known in inspect.signature(kind).parameters}
            ours = key.startswith("llm_train.")
            arguments = self.settings(kind, from_call=from_call) if ours else {"properties": names}
            self._classes[key] = {
                **_CLOSED,
                "description": (inspect.getdoc(kind) or "").partition("\n")[0],
                "required": ["class_path"],
                "x-required": ["init_args"] * bool(arguments.get("x-required", not ours)),
                "properties": {"class_path": path, "init_args": arguments, "dict_kwargs": _ANY},
            }
        return {"$ref": f"#/definitions/{key}"}


def _placeholder(hint: Hint, choices: Sequence[str]) -> str:
    if choices:
        return "NAME"
    if type(None) in (alternatives := schema.parts(hint)) and len(alternatives) == 2:
        (hint,) = (part for part in alternatives if part is not type(None))
    if hint in PLAIN:
        return PLAIN[hint][1]
    if (literal := schema.choices_of(hint)) and schema.describe(hint).startswith("one of"):
        return "|".join(literal)
    if get_origin(hint) in (list, tuple):
        return "LIST"
    return "CLASS" if isinstance(hint, type) else "VALUE"


def _text(setting: Setting, path: str, choices: Sequence[str]) -> str:
    group, _, name = path.partition(".")
    text = " ".join(setting.help.replace("``", "").split())
    if group == "trainer":
        text = _TRAINER.get(name, text.split(". ")[0].partition(" Default:")[0])
        if name in ("logger", "callbacks", "profiler", "plugins"):
            return text
    text = text.rstrip(".")
    hint, default = setting.hint, setting.default
    known = list(choices) or ([] if schema.choices_of(hint) else schema.class_names(hint))
    if 0 < len(known) <= _LONG:
        text += f": {', '.join(known)}"
    if setting.required:
        return f"{text} (required)"
    shown = str(default).lower() if isinstance(default, bool) else default
    return (
        f"{text} (default {shown})" if isinstance(default, int | float | str | Duration) else text
    )
