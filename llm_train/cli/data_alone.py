"""Only what ``data`` says, which needs neither torch nor Lightning, unless something may be wrong.

Preparing uses nothing else. Every other key of the files and options is held against the JSON
schema of a configuration, which ``kept`` has in a file, because a slip anywhere is better refused
before hours of work than after. The schema leaves much open, and messages are made elsewhere: so
what is not certainly sound is read in full, as any other verb reads it. Only what a part itself
says of a value of the right type, as of a rate below 0, is left to ``check`` and ``fit``.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from llm_train.cli.parser import layers, parse, spell_out
from llm_train.cli.schema import JSON, PLAIN, Setting, is_finite
from llm_train.cli.spelling import texts
from llm_train.data.preparation import DataOptions
from llm_train.errors import ConfigError
from llm_train.runtime import yaml12
from llm_train.units import DURATION, Duration


def data_alone(
    arguments: Sequence[str],
    schema: Mapping[str, Any],
    allow_import: Sequence[str],
    run_dirs: list[Path],
) -> DataOptions | None:
    """What a configuration says of data; None if anything in it may be wrong.

    Args:
        arguments: as on the command line: ``-c FILE`` and ``--key=value``.
        schema: the JSON schema of a configuration.
        allow_import: modules that a ``class_path`` may import besides our own, torch and lightning.
        run_dirs: where the directory of a run is noted.
    """
    needed, classes = schema["x-required"], schema["definitions"]
    top = {**schema, "x-required": ()}
    rest: dict[str, Any] = {}
    try:
        files, options = spell_out(arguments)
        given = list(layers(files, options))
        # An option that sets nothing asks for help, or for the configuration.
        sound = bool(files) and len(given) == len(files) + len(options)
        for layer in given:
            values = {key: each for key, each in layer.values.items() if key != "data"}
            rest = _laid(rest, texts(_read, values) if layer.option else values)
            sound = sound and _is_sound(top, rest, classes, whole=layer is given[-1])
        if not sound:
            return None
        # Of other keys whatever the schema has allowed, without a class, which would be built.
        roots = {key: Setting(dict | str | int, key in needed) for key in schema["properties"]}
        roots["data"] = Setting(DataOptions, required=True)
        ours = [each for each in options if each.startswith(("--data.", "--data=", "--data+="))]
        built, _, walk, builder = parse(files, ours, roots, {}, allow_import)
        data: DataOptions = built.data
    except ConfigError:
        return None
    if walk.problems or builder.failures:
        return None
    run_dir = rest.get("trainer", {}).get("default_root_dir") or f"runs/{Path(files[0]).stem}"
    run_dirs.append(Path(run_dir))
    return data


def _read(text: str) -> Any:
    return yaml12.load_or_text(text) if text else text  # an option without a value is not null


def _laid(lower: Any, upper: Any) -> Any:
    """One layer over another; the parser says what becomes of a class or a list that is replaced.

    Where it is the settings of a class by another name, they are sound as long as it has them all.
    """
    if isinstance(lower, dict) and isinstance(upper, dict):
        return {**lower, **{key: _laid(lower.get(key), each) for key, each in upper.items()}}
    if isinstance(lower, dict | list):
        raise ConfigError("not for this module to say")
    return upper


def _is_sound(schema: Mapping[str, Any], value: Any, classes: JSON, *, whole: bool) -> bool:
    """Whether a JSON schema surely allows a value: where anything may stand, nothing is sure.

    Args:
        schema: of the value.
        value: what is set.
        classes: definitions that the schema refers to.
        whole: whether nothing is still to come, so that what is required must be there.
    """
    inner = partial(_is_sound, classes=classes, whole=whole)
    if "$ref" in schema:
        return inner(classes[schema["$ref"].removeprefix("#/definitions/")], value)
    if "anyOf" in schema:
        if any(each.get("$ref", "").endswith(f".{value}") for each in schema["anyOf"]):
            value = {"class_path": value}  # a class by its name alone may lack settings
        return any(inner(each, value) for each in schema["anyOf"])
    if "enum" in schema:
        return any(type(each) is type(value) and each == value for each in schema["enum"])
    kind = schema.get("type")
    if isinstance(value, dict):
        known, others = schema.get("properties", {}), schema.get("additionalProperties")
        needed = {*schema.get("required", ()), *(schema.get("x-required", ()) if whole else ())}
        sound = [inner(known.get(key, others or {}), each) for key, each in value.items()]
        return others is not None and needed <= value.keys() and all(sound)
    if isinstance(value, list):
        fits = schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value))
        return kind == "array" and fits and all(inner(schema["items"], each) for each in value)
    if isinstance(value, str) and "pattern" in schema:
        # Another pattern stands for a class that the schema does not list.
        known = schema["pattern"] == DURATION.pattern and DURATION.match(value) is not None
        return known and bool(Duration.parse(value))
    own = PLAIN[type(value)][2]["type"] if type(value) in PLAIN else ""
    return (kind == own or (kind, own) == ("number", "integer")) and is_finite(value)
