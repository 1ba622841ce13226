"""Compares what files and options say with the signatures of what they name, before anything runs.

The parser would stop at its first complaint, word it for its own nesting, and let an unknown key
pass whose value is ``{}``. Here every key of every file and option is looked up where it stands, so
that all problems are found at once, each with its key, its value and a way out.
"""

import importlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from llm_train.cli import schema
from llm_train.cli.parts import Exchange
from llm_train.cli.schema import Hint, Owner, Setting
from llm_train.cli.secret_keys import literals
from llm_train.cli.spelling import closest, nearest, texts
from llm_train.errors import ConfigError
from llm_train.runtime import yaml12
from llm_train.units import Duration

_CLASS_KEYS = ("class_path", "init_args", "dict_kwargs")
_EMPTY = "give it one, or remove the key"
_MOST_SHOWN = 200  # characters of a value in a message
_EXAMPLES: dict[Hint, str] = {
    int: "12",
    float: "0.1 or 3e-4",
    Duration: "'2000 steps' or '1.5B tokens'",
}


class Layer(NamedTuple):
    """A file, or one option.

    Attributes:
        values: what it sets.
        option: whether it stood on the command line, where values are still text and the settings
            of a class may follow its key directly.
    """

    values: Mapping[str, object]
    option: bool


class Walk:
    """Goes through all layers, later over earlier.

    Args:
        roots: the top level.
        choices: values that we support, by key, where the type allows more.
        allowed: modules that a ``class_path`` may import.

    Attributes:
        chosen: the class at each key that has one: of a group, or named by a ``class_path``.
        exchanges: where a later layer has named another class.
        given: the number of the layer that last gave each key.
        owners: what has the settings below each key, and how many of them whoever calls it gives.
    """

    def __init__(
        self,
        roots: Mapping[str, Setting],
        choices: Mapping[str, Sequence[str]],
        allowed: Sequence[str],
    ) -> None:
        known = schema.flattened(roots).items()
        self.chosen: dict[str, type] = {k: s.hint for k, s in known if schema.is_group(s.hint)}
        self._roots, self._choices, self._allowed = roots, choices, allowed
        self._problems: dict[str, None] = {}  # each once, in order
        self.exchanges: list[Exchange] = []
        self.given: dict[str, int] = {}
        self._layer = 0
        self.owners: dict[str, tuple[Owner, int]] = {}
        self._option = False

    def require_sound(self, layers: Sequence[Layer]) -> None:
        """Raises what it finds.

        Raises:
            ConfigError: one line for each problem.
        """
        for self._layer, layer in enumerate(layers):
            self._option = layer.option
            # First and alone: another complaint about the same key could repeat the secret.
            if written_out := list(
                literals(texts(yaml12.load_or_text, layer.values) if layer.option else layer.values)
            ):
                raise ConfigError("\n".join(written_out))
            self._settings(self._roots, layer.values, "")
        for key, setting in self._roots.items():
            if setting.required and schema.is_group(setting.hint):
                self._settings(setting.hint, {}, key)
        if not self._problems:
            self._find_missing()
        if self._problems:
            raise ConfigError("\n".join(self._problems))

    def _say(self, problem: str) -> None:
        self._problems[problem] = None

    # --- keys -------------------------------------------------------------------------------------

    def _settings(self, owner: Owner, values: object, path: str, from_call: int = 0) -> None:
        """What is set of ``owner``; whoever calls it gives its first ``from_call`` settings."""
        values = self._structured(values)
        if not isinstance(values, Mapping):
            if values is not None:
                self._say(f"{path} must be a group of settings, not a single value")
            return
        self.owners[path] = owner, from_call
        known = schema.settings_of(owner)
        for key, value in values.items():
            inner = join(path, key)
            if key not in known:
                of = f" of {owner.__name__}" if isinstance(owner, type) else ""
                way_out = nearest(str(key), list(known), _listing(path, owner))
                self._say(f"{inner} is not a setting{of}; {way_out}")
                continue
            setting = known[key]
            words = self._option and str in schema.parts(setting.hint)
            if value is not None and (words or self._structured(value) is not None):
                self.given[inner] = self._layer
            elif not setting.required and not schema.admits_null(setting.hint):
                self._say(f"{inner} has no value; {_EMPTY}")  # all lines below it are comments
                continue
            if schema.is_group(setting.hint):
                self._settings(setting.hint, value, inner)
            elif value is not None or not setting.required:
                self._value(setting, value, inner)

    def _find_missing(self) -> None:
        for path, (owner, from_call) in self.owners.items():
            absent = [
                f"{join(path, key)} ({schema.needed(setting.hint)})"
                for key, setting in list(schema.settings_of(owner).items())[from_call:]
                if setting.required and not schema.is_group(setting.hint)
                if join(path, key) not in self.given
            ]
            if absent:
                verb, them = ("is", "it") if len(absent) == 1 else ("are", "them")
                who = f", and {owner.__name__} needs {them}" if isinstance(owner, type) else ""
                self._say(f"{', '.join(absent)} {verb} missing{who}; add {them}")

    # --- values -----------------------------------------------------------------------------------

    def _value(self, setting: Setting, value: object, path: str) -> None:
        """A value that is no group: a class, a list of classes, or something plain."""
        hint = setting.hint
        structured = self._structured(value) if schema.families(hint) else None
        if isinstance(structured, Mapping) and (of := schema.named(hint)):
            for name, item in structured.items():
                self._item(of, item, join(path, name))
            return
        items = structured if isinstance(structured, list) else []
        if any(isinstance(item, str | Mapping) for item in items):  # classes, and not numbers
            if not schema.is_list(hint):
                self._say(f"{path} takes one value, not a list; remove the dash or the brackets")
                return
            for index, item in enumerate(items):
                self._item(hint, item, f"{path}[{index}]")
        elif self._option and f"{path}[0]" in self.chosen:
            pass  # --trainer.callbacks.duration belongs to the last class of the list
        elif path == "trainer.accelerator" and isinstance(structured, Mapping):  # words only
            self._say(self._wrong(hint, value, path))
        elif isinstance(structured, Mapping) or (
            isinstance(structured, str) and str not in schema.parts(hint)
        ):
            self._class(hint, structured, path)
        elif not schema.accepts(hint, value):
            self._say(self._wrong(hint, value, path))
        elif str not in schema.parts(hint) and (
            schema.is_finite(texts(yaml12.load_or_text, value)) < schema.is_finite(setting.default)
        ):  # a part for which infinity means something has it for a default
            self._say(f"{path}={value} is not finite; write {_EXAMPLES[float]}, for instance")

    def _item(self, hint: Hint, value: object, path: str) -> None:
        """One of several in a list or by name: a class, or a group of settings."""
        groups = [family for family in schema.families(hint) if schema.is_group(family)]
        if groups:
            self._settings(groups[0], value, path)
        else:
            self._class(hint, value, path)

    def _structured(self, value: object) -> object:
        loaded: object = yaml12.load_or_text(value) if isinstance(value, str) else value
        return loaded if self._option else value

    def _wrong(self, hint: Hint, value: object, path: str) -> str:
        text = value if isinstance(value, str) else yaml12.dump(value, flow=True)
        shown = " ".join(text.split())
        shown = shown if len(shown) <= _MOST_SHOWN else f"{shown[:_MOST_SHOWN]}..."
        allowed = self._choices.get(path, schema.choices_of(hint))
        rule = f"one of {', '.join(allowed)}" if path in self._choices else schema.describe(hint)
        way_out = "correct it or remove it"
        if allowed:
            close = closest(shown, allowed)
            way_out = f"did you mean {close}?" if close else ""
        elif hint is int and (near := schema.whole_neighbours(shown)):
            way_out = f"write {near}"
        elif hint in _EXAMPLES:
            way_out = f"write {_EXAMPLES[hint]}, for instance"
        elif hint is str:
            way_out = f"write '{shown}' in quotes"
        return f"{path}={shown} is not {rule}" + (f"; {way_out}" if way_out else "")

    # --- classes ----------------------------------------------------------------------------------

    def _class(self, hint: Hint, value: object, path: str) -> None:
        """The class that is chosen at ``path``, and its settings."""
        key = path if isinstance(value, str) else f"{path}.class_path"
        if isinstance(value, str):
            value = {"class_path": value}
        if not isinstance(value, Mapping):
            self._say(self._wrong(hint, value, path))
            return
        arguments = value.get("init_args") or {}
        if "init_args" in value and value["init_args"] is None:
            self._say(f"{path}.init_args has no value; {_EMPTY}")
        stray = {name: value[name] for name in value if name not in _CLASS_KEYS}
        if stray and self._option:  # --model.optimizer.learning_rate
            arguments, stray = {**arguments, **stray}, {}
        if "class_path" in value:
            before = self.chosen.pop(path, None)
            found = self._find(hint, str(value["class_path"]), key)
            if isinstance(found, type):
                self.chosen[path] = found
                if before not in (None, found):
                    self.exchanges.append(Exchange(path, before, found, self._layer))
        elif path not in self.chosen:
            self._say(
                f"{path} has settings and no class yet; name {path}.class_path before them, in the "
                f"same or an earlier file; known: {', '.join(schema.class_names(hint))}"
            )
            return
        if owner := self.chosen.get(path):
            known = schema.settings_of(owner)
            for name in stray:
                way_out = nearest(
                    name, [*_CLASS_KEYS, *known], _listing(f"{path}.init_args", owner)
                )
                way_out = "indent accordingly" if name in known else way_out
                self._say(f"{join(path, name)}: settings stand under {path}.init_args; {way_out}")
            from_call = schema.arguments_of_call(hint)
            self._settings(owner, arguments, f"{path}.init_args", from_call)

    def _find(self, hint: Hint, name: str, key: str) -> object:
        """The class or function called ``name``; None if it cannot be used."""
        families, known = schema.families(hint), schema.class_names(hint)
        base = " or ".join(dict.fromkeys(family.__name__ for family in families))
        module_name, _, last = name.rpartition(".")
        found: object = None
        if not module_name:
            found = schema.subclass(hint, name)
            fault = f"is not a known {base}; {nearest(name, known)}"
        elif not any(f"{name}.".startswith(f"{allowed}.") for allowed in self._allowed):
            fault = (
                "may not be imported: only llm_train, torch and lightning may; if you trust that "
                f"code, add --allow-import {name.split('.')[0]}"
            )
        else:
            try:
                module = importlib.import_module(module_name)
            except ModuleNotFoundError as error:
                fault = (
                    f"cannot be imported: no module named {error.name}; install it, or add its "
                    "folder to PYTHONPATH"
                )
            else:
                found = vars(module).get(last) or getattr(module, last, None)
                there = [*known, *(n for n, v in vars(module).items() if isinstance(v, type))]
                way_out = nearest(last, there if closest(last, there) else known)
                fault = f"does not exist: {module_name} has no {last}; {way_out}"
        if found is not None:
            fault = f"is not a {base}; {nearest(name, known)}"
            suits = (
                issubclass(found, tuple(families)) if isinstance(found, type) else callable(found)
            )
            if suits and (isinstance(found, type) or schema.arguments_of_call(hint)):
                return found
        self._say(f"{key}={name} {fault}")
        return None


def join(path: str, key: object) -> str:
    """A dotted key below another one; "" is the top."""
    shown = str(key) if str(key).strip() else f"'{key}'"
    return f"{path}.{shown}" if path else shown


def _listing(path: str, owner: Owner) -> str:
    """The option that lists the settings of what stands at a key."""
    key, _, inner = path.partition(".init_args")
    if inner or key == path or not isinstance(owner, type):
        return "--help"
    return f"--{key.partition('[')[0]}.help={owner.__name__}"
