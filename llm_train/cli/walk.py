"""Compares what files and options say with the signatures of what they name, before anything runs.

The parser would stop at its first complaint, word it for its own nesting, and let an unknown key
pass whose value is ``{}``. Here every key of every file and option is looked up where it stands, so
that all problems are found at once, each with its key, its value and a way out.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from llm_train.cli import schema
from llm_train.cli.schema import Owner
from llm_train.errors import ConfigError
from llm_train.runtime import yaml12
from llm_train.units import Duration

_CLASS_KEYS = ("class_path", "init_args", "dict_kwargs")


class Layer(NamedTuple):
    """A file, or one option.

    Attributes:
        values: what it sets.
        option: whether it stood on the command line, where values are still text and the settings
            of a class may follow its key directly.
    """

    values: Mapping[str, Any]
    option: bool


class Walk:
    """Goes through all layers, later over earlier.

    Args:
        roots: type of each top-level key.
        choices: values that we support, by key, where the type allows more.
        allowed: modules that a ``class_path`` may import.
    """

    def __init__(
        self, roots: Mapping[str, Any], choices: Mapping[str, Sequence[str]], allowed: Sequence[str]
    ) -> None:
        self.problems: dict[str, None] = {}  # each once, in order
        self.chosen: dict[str, type] = {}
        self._roots, self._choices, self._allowed = roots, choices, allowed
        self._option = False

    def require_sound(self, layers: Sequence[Layer]) -> None:
        """Raises what it finds.

        Raises:
            ConfigError: one line for each problem.
        """
        merged: dict[str, Any] = {}
        for layer in layers:
            self._option = layer.option
            self._settings(self._roots, layer.values, "")
            _overlay(merged, layer.values, layer.option)
        if not self.problems:
            self._missing(self._roots, merged, "")
        if self.problems:
            raise ConfigError("\n".join(self.problems))

    def places(self) -> dict[type, list[str]]:
        """The keys of each class: those of groups, and those where it was chosen, in order."""
        found: dict[type, list[str]] = {}
        groups = {
            key: schema.setting_at(self._roots, key).hint for key in schema.all_keys(self._roots)
        }
        for key, kind in {**groups, **self.chosen}.items():
            if isinstance(kind, type):
                found.setdefault(kind, []).append(key)
        return found

    def _say(self, problem: str) -> None:
        self.problems[problem] = None

    # --- keys -------------------------------------------------------------------------------------

    def _settings(self, owner: Owner, values: Any, path: str) -> None:
        values = self._loaded(values)
        if values is None:
            return
        if not isinstance(values, Mapping):
            self._say(f"{path} must be a group of settings, not a single value")
            return
        known = schema.settings_of(owner)
        whose = f" of {owner.__name__}" if isinstance(owner, type) else ""
        for key, value in values.items():
            inner = join(path, key)
            if key not in known:
                self._say(
                    f"{inner} is not a setting{whose}; {schema.nearest(str(key), list(known))}"
                )
            elif schema.is_group(hint := known[key].hint):
                self._settings(hint, value, inner)
            else:
                self._value(hint, value, inner)

    def _missing(self, owner: Owner, values: Any, path: str, given: int = 0) -> None:
        """Required settings that nobody gave; a call itself gives the first ``given`` of them."""
        values = values if isinstance(values, Mapping) else {}
        absent = []
        for key, setting in list(schema.settings_of(owner).items())[given:]:
            inner, value = join(path, key), values.get(key)
            if schema.is_group(setting.hint):
                if setting.required or value is not None:
                    self._missing(setting.hint, value, inner)
            elif setting.required and value is None:
                names = schema.class_names(setting.hint)
                needed = f"a class_path: {' or '.join(names)}" if names else ""
                absent.append(f"{inner} ({needed or schema.describe(setting.hint)})")
            else:
                self._missing_inside(setting.hint, value, inner)
        if absent:
            verb, them = ("is", "it") if len(absent) == 1 else ("are", "them")
            who = f", and {owner.__name__} needs {them}" if isinstance(owner, type) else ""
            self._say(f"{', '.join(absent)} {verb} missing{who}; add {them}")

    def _missing_inside(self, hint: Any, value: Any, path: str) -> None:
        if isinstance(value, list):
            for index, item in enumerate(value):
                self._missing_inside(hint, item, f"{path}[{index}]")
        elif path in self.chosen:
            inner = dict(value) if isinstance(value, Mapping) else {}
            inner |= inner.get("init_args") or {}
            given = schema.arguments_of_call(hint)
            self._missing(self.chosen[path], inner, f"{path}.init_args", given)

    # --- values -----------------------------------------------------------------------------------

    def _value(self, hint: Any, value: Any, path: str) -> None:
        """A value that is no group: a class, a list of classes, or something plain."""
        families = schema.families(hint)
        structured = self._loaded(value) if families else value
        if families and isinstance(structured, Mapping):
            if not (self._option and schema.is_list(hint) and not set(structured) & {"class_path"}):
                self._class(hint, structured, path)
        elif families and isinstance(structured, list):
            for index, item in enumerate(structured):
                self._class(hint, item, f"{path}[{index}]")
        elif families and isinstance(structured, str) and str not in schema.parts(hint):
            self._class(hint, structured, path)
        elif not schema.accepts(hint, value):
            self._say(self._wrong(hint, value, path))

    def _loaded(self, value: Any) -> Any:
        return yaml12.load_or_text(value) if self._option and isinstance(value, str) else value

    def _wrong(self, hint: Any, value: Any, path: str) -> str:
        shown = str(value) if isinstance(value, str) else yaml12.dump(value).strip()
        if hint is Duration:
            try:
                Duration.parse(value)
            except ConfigError as error:
                return f"{path}={error}"
        allowed = list(self._choices.get(path, schema.choices_of(hint)))
        given = path in self._choices
        rule = f"one of {', '.join(allowed)}" if given else schema.describe(hint)
        line = f"{path}={shown} is not {rule}"
        if allowed:
            close = schema.closest(shown, allowed)
            return f"{line}; did you mean {close}?" if close else line
        if hint is int and (near := schema.whole_neighbours(shown)):
            return f"{line}; write {near}"
        examples = {int: "12", float: "0.1 or 3e-4", str: f"'{shown}' in quotes"}
        if hint in examples:
            return f"{line}; write {examples[hint]}, for instance"
        return f"{line}; correct it or remove it"

    # --- classes ----------------------------------------------------------------------------------

    def _class(self, hint: Any, value: Any, path: str) -> None:
        """The class that is chosen at ``path``, and its settings."""
        if isinstance(value, str):
            value, key = {"class_path": value}, path
        else:
            key = f"{path}.class_path"
        if not isinstance(value, Mapping):
            self._say(self._wrong(hint, value, path))
            return
        stray = [name for name in value if name not in _CLASS_KEYS]
        arguments = value.get("init_args")
        if self._option and stray:  # --model.optimizer.learning_rate
            arguments, stray = {name: value[name] for name in stray}, []
        if "class_path" in value:
            self._choose(hint, str(value["class_path"]), path, key)
            if stray:
                self._say(
                    f"{', '.join(map(str, stray))} must stand under {path}.init_args; "
                    "indent accordingly"
                )
        elif path not in self.chosen:
            self._say(self._without_class(hint, arguments, path, stray))
        if path in self.chosen and arguments is not None:
            self._settings(self.chosen[path], arguments, f"{path}.init_args")

    def _without_class(self, hint: Any, arguments: Any, path: str, stray: list[str]) -> str:
        if self._option:
            name = ".".join(["init_args", *list(arguments or {})[:1]])
            return f"{path}.{name} needs {path}.class_path; name the class before its settings"
        if arguments is not None and not stray:
            return (
                f"{path} has settings before its class is known; give the file that names "
                f"{path}.class_path first"
            )
        return (
            f"{path}.class_path is missing; name the class, and put its settings under "
            f"{path}.init_args; known: {', '.join(schema.class_names(hint))}"
        )

    def _choose(self, hint: Any, name: str, path: str, key: str) -> None:
        known = schema.class_names(hint)
        bases = dict.fromkeys(family.__name__ for family in schema.families(hint))
        base = " or ".join(bases) or "class"
        self.chosen.pop(path, None)
        module_name, _, last = name.rpartition(".")
        if not module_name:
            found: object = schema.subclass(hint, name)
            if found is None:
                self._say(f"{key}={name} is not a known {base}; {schema.nearest(name, known)}")
                return
        else:
            if not any(f"{name}.".startswith(f"{allowed}.") for allowed in self._allowed):
                self._say(
                    f"{key}={name} may not be imported: only llm_train, torch and lightning may; "
                    f"if you trust that code, add --allow-import {name.split('.')[0]}"
                )
                return
            try:
                module = importlib.import_module(module_name)
                found = getattr(module, last)
            except ModuleNotFoundError as error:
                self._say(
                    f"{key}={name} cannot be imported: no module named {error.name}; install it, "
                    "or add its folder to PYTHONPATH"
                )
                return
            except AttributeError:
                public = [n for n, v in vars(module).items() if isinstance(v, type) and n[0] != "_"]
                close = schema.closest(last, public) or schema.closest(last, known)
                way_out = f"did you mean {close}?" if close else schema.nearest(last, known)
                self._say(f"{key}={name} does not exist: {module_name} has no {last}; {way_out}")
                return
        if isinstance(found, type) and issubclass(found, tuple(schema.families(hint))):
            self.chosen[path] = found
        elif isinstance(found, type) or not schema.arguments_of_call(hint):
            self._say(f"{key}={name} is not a {base}; {schema.nearest(name, known)}")


def join(path: str, key: object) -> str:
    """A dotted key below another one; "" is the top."""
    return f"{path}.{key}" if path else str(key)


def _overlay(below: dict[str, Any], above: Mapping[str, Any], option: bool) -> None:
    for key, value in above.items():
        if option and isinstance(value, str) and value.startswith(("{", "[")):
            value = yaml12.load_or_text(value)
        if isinstance(value, Mapping):
            inner = below.get(key)
            below[key] = inner if isinstance(inner, dict) else {}
            _overlay(below[key], value, option)
        else:
            below[key] = value
