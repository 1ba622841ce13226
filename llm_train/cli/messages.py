"""One line for every complaint of the parser: dotted key, value, rule, way out.

jsonargparse nests its messages as it nests its parsers: ``Parser key "model.network": Problem
with given class_path '...': Parser key "layers": Expected a <class 'int'>. Got value: 2.5``.
Unpeeling them layer by layer gives the key as one would write it; signatures (``schema``) give the
suggestion.
A complaint of an unknown form is passed on as it is, in one line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from llm_train.cli import schema
from llm_train.cli.place import Place, item_number, join
from llm_train.cli.schema import nearest

_KEY = re.compile(r'^Parser key "(?P<key>[^"]+)"(?: element \d+)?:(?P<rest>.*)$', re.S)
_CLASS = re.compile(r"^Problem with given class_path '(?P<name>[^']+)':(?P<rest>.*)$", re.S)
_CALLABLE = re.compile(
    r"^Type \S*Callable.*? expects a function or a callable class:(?P<rest>.*)"
    r"\. Got value: (?P<value>.*?)$",
    re.S,
)
_UNION = re.compile(
    r"^Does not validate against any of the Union subtypes\s+Subtypes: .*?\n\s*Errors:\n"
    r"(?P<errors>.*)\n\s*Given value type: [^\n]*\n\s*Given value: (?P<value>.*)$",
    re.S,
)
_NOT_A_PATH = re.compile(
    r"^- Expected a path but .*? either not accessible or invalid\n\s*- ", re.S
)
_GOT = re.compile(r"^Expected an? (?P<type>.*)\. Got value: (?P<value>.*)$", re.S)
_UNKNOWN_CLASS = re.compile(
    r"^(?:Expected a dot import path string|Unexpected import path format): (?P<name>\S+)"
)
_WRONG_CLASS = re.compile(
    r"Import path (?P<name>\S+) does not correspond to a subclass of (?P<base>\w+)"
)
_DENIED = re.compile(r"Importing '(?P<name>[^']+)' is not allowed")
_ABSENT = re.compile(
    r"(?:module|type object) '(?P<module>[^']+)' has no attribute '(?P<name>[^']+)'"
)
_NO_MODULE = re.compile(r"No module named '(?P<name>[^']+)'")
_NO_OPTION = re.compile(r"^(?:Group '(?P<group>[^']+)' does not accept o|O)ption '(?P<key>[^']+)'")
_MISSING = re.compile(r"^the following arguments are required: (?P<keys>.*)$")
_UNRECOGNIZED = re.compile(r"^unrecognized arguments: (?P<first>\S+)")
_NO_VALUE = re.compile(
    r"^argument (?:\S*/)?(?P<option>\S+): expected (?:one|at least one) argument"
)
_YAML_WORDS = {"True": "true", "False": "false", "None": "null"}


def explain(
    message: str,
    roots: Mapping[str, Any],
    raw: Mapping[str, Any],
    choices: Mapping[str, Sequence[str]],
    options: Sequence[str],
) -> str:
    """Says in one line what was wrong.

    Args:
        message: the parser's complaint.
        roots: type of each top-level key.
        raw: the files laid over each other.
        choices: values that we support, by key, where the type allows more.
        options: flags that are not settings.
    """
    text = message.strip()
    if match := _UNRECOGNIZED.match(text):
        return _unrecognized(match["first"], roots, options)
    if match := _NO_VALUE.match(text):
        return f"{match['option']} needs a value; write {match['option']}=VALUE"
    return " ".join(_part(text, Place(path="", owner=roots, raw=raw), choices).split())


def _part(text: str, place: Place, choices: Mapping[str, Sequence[str]]) -> str:
    """A complaint about the settings of ``place.owner``."""
    text = text.strip()
    if match := _KEY.match(text):
        return _value(match["rest"].strip(), place.inside(match["key"]), choices)
    if match := _NO_OPTION.match(text):
        inner = place.inside(match["group"]) if match["group"] else place
        return _unknown_key(match["key"], inner)
    if match := _MISSING.match(text):
        return _missing(match["keys"].split(", "), place)
    return f"{place.path}: {text}" if place.path else text


def _value(text: str, place: Place, choices: Mapping[str, Sequence[str]]) -> str:
    """A complaint about the value at ``place``."""
    text = _NOT_A_PATH.sub("", text.strip())
    if match := _UNION.match(text):
        return _union(match, place, choices)
    if match := _CALLABLE.match(text):
        chosen = re.search(r"class_path='([^']+)'", match["value"])
        if chosen and not _about_import(match["rest"]):
            return _part(match["rest"], place.instance(chosen[1], match["rest"]), choices)
        return _class(match["rest"].strip(), place, chosen[1] if chosen else match["value"])
    if match := _CLASS.match(text):
        if _about_import(match["rest"]):
            return _class(match["rest"].strip(), place, match["name"])
        return _part(match["rest"], place.instance(match["name"], match["rest"]), choices)
    if re.search(r"is abstract|^Not a valid subclass of", text):
        return _without_class(place, schema.class_names(place.hint))
    if _UNKNOWN_CLASS.match(text) or _WRONG_CLASS.search(text):
        return _class(text, place, "")
    if text.startswith("Not of type "):
        return f"{place.path}={text.partition(': ')[2]}"
    if text.startswith("Unable to load config"):
        return f"{place.path} must be a group of settings, not a single value"
    if match := _GOT.match(text):
        return _wrong_value(match["value"], place, choices)
    return f"{place.path}: {text}"


def _union(match: re.Match[str], place: Place, choices: Mapping[str, Sequence[str]]) -> str:
    """Of the complaints about each alternative, the one about the alternative that was meant."""
    indent = re.match(r"\s*", match["errors"])
    assert indent is not None
    errors = f"\n{match['errors']}".split(f"\n{indent[0]}- ")[1:]
    for error in errors:
        if _CLASS.match(error):
            return _value(error, place, choices)
    if match["value"].startswith("NestedArg("):
        key = re.search(r"key='([^']+)'", match["value"])
        name = key[1] if key else "its settings"
        return (
            f"{place.path}.{name} needs {place.path}.class_path; name the class before its settings"
        )
    for error in errors:
        if place.path not in choices and (
            _UNKNOWN_CLASS.match(error) or _WRONG_CLASS.search(error)
        ):
            return _class(error, place, match["value"])
    return _wrong_value(match["value"], place, choices)


def _wrong_value(text: str, place: Place, choices: Mapping[str, Sequence[str]]) -> str:
    shown = _YAML_WORDS.get(text.strip(), text.strip())
    allowed = list(choices.get(place.path, schema.choices_of(place.hint)))
    given = place.path in choices
    rule = f"one of {', '.join(allowed)}" if given else schema.describe(place.hint)
    line = f"{place.path}={shown} is not {rule}"
    if allowed:
        close = schema.closest(shown, allowed)
        return f"{line}; did you mean {close}?" if close else line
    if place.hint is int and (near := schema.whole_neighbours(shown)):
        return f"{line}; write {near}"
    examples = {int: "12", float: "0.1 or 3e-4", str: f"'{shown}' in quotes"}
    example = examples.get(place.hint)
    return (
        f"{line}; write {example}, for instance" if example else f"{line}; correct it or remove it"
    )


def _unknown_key(key: str, place: Place) -> str:
    known = schema.settings_of(place.owner)
    names = key.split(".")
    while len(names) > 1 and schema.is_group(known.get(names[0])):
        place = place.inside(names.pop(0))
        known = schema.settings_of(place.owner)
    whose = f" of {place.owner.__name__}" if isinstance(place.owner, type) else ""
    full = join(place.path, names[0])
    if place.owner is None:
        return f"{full} is not a known setting; remove it"
    return f"{full} is not a setting{whose}; {nearest(names[0], list(known))}"


def _missing(keys: Sequence[str], place: Place) -> str:
    needs = [f"{join(place.path, key)} ({_needed(place, key)})" for key in keys]
    verb, them = ("is", "it") if len(needs) == 1 else ("are", "them")
    who = f", and {place.owner.__name__} needs {them}" if isinstance(place.owner, type) else ""
    return f"{', '.join(needs)} {verb} missing{who}; add {them}"


def _needed(place: Place, key: str) -> str:
    hint = schema.type_at(place.owner, key)
    names = schema.class_names(hint)
    return f"a class_path: {' or '.join(names)}" if names else schema.describe(hint)


def _class(text: str, place: Place, name: str) -> str:
    """A complaint about which class was named."""
    key = place.path if isinstance(place.raw, str) else f"{place.path}.class_path"
    if isinstance(place.raw, list):
        index = item_number(place.raw, _named(text) or name, text)
        key = f"{place.path}.class_path" if index is None else f"{place.path}[{index}].class_path"
    known = schema.class_names(place.hint)
    names = [family.__name__ for family in schema.families(place.hint)]
    base = " or ".join(dict.fromkeys(names)) or "class"
    if match := _DENIED.search(text):
        top = match["name"].split(".")[0]
        return (
            f"{key}={match['name']} may not be imported: only llm_train, torch and lightning may; "
            f"if you trust that code, add --allow-import {top}"
        )
    if match := _ABSENT.search(text):
        inside = schema.public_classes(match["module"])
        wanted = f"{match['module']}.{match['name']}"
        close = schema.closest(match["name"], inside) or schema.closest(match["name"], known)
        hint = f"did you mean {close}?" if close else nearest(match["name"], known)
        reason = f"{match['module']} has no {match['name']}"
        return f"{key}={name or wanted} does not exist: {reason}; {hint}"
    if match := _NO_MODULE.search(text):
        return (
            f"{key}={name} cannot be imported: no module named {match['name']}; install it, or add "
            "its folder to PYTHONPATH"
        )
    if match := _WRONG_CLASS.search(text):
        return f"{key}={match['name']} is not a {match['base']}; {nearest(match['name'], known)}"
    unknown = _named(text) or name
    return f"{key}={unknown} is not a known {base}; {nearest(unknown, known)}"


def _without_class(place: Place, known: Sequence[str]) -> str:
    raw = place.raw if isinstance(place.raw, Mapping) else {}
    stray = [key for key in raw if key not in ("class_path", "init_args", "dict_kwargs")]
    if "class_path" in raw and stray:
        return f"{', '.join(stray)} must stand under {place.path}.init_args; indent accordingly"
    if "class_path" in raw:
        return (
            f"{place.path} has settings before its class is known; give the file that names "
            f"{place.path}.class_path first"
        )
    return (
        f"{place.path}.class_path is missing; name the class, and put its settings under "
        f"{place.path}.init_args; known: {', '.join(known)}"
    )


def _unrecognized(argument: str, roots: Mapping[str, Any], options: Sequence[str]) -> str:
    if not argument.startswith("-"):
        return f"{argument!r} is not an option; a configuration file is given as -c {argument}"
    name = argument.partition("=")[0]
    known = [*options, *(f"--{key}" for key in schema.all_keys(roots))]
    close = schema.closest(name, known)
    return f"{name} is not an option; " + (f"did you mean {close}?" if close else "see --help")


def _about_import(text: str) -> bool:
    return any(p.search(text.strip()) for p in (_DENIED, _ABSENT, _NO_MODULE)) and not _KEY.match(
        text.strip()
    )


def _named(text: str) -> str:
    match = _UNKNOWN_CLASS.match(text) or _WRONG_CLASS.search(text)
    return match["name"] if match else ""
