"""A recipe as plain values: to be kept alongside the tokens and compared with another one.

The plain form is what a YAML file would say: ``class_path`` and the fields. Fields that do not
change the tokens carry ``metadata=NO_EFFECT_ON_TOKENS`` and are left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

from llm_train.data.base import Recipe
from llm_train.data.token_manifest import Manifest
from llm_train.errors import ConfigError

NO_EFFECT_ON_TOKENS: Mapping[str, bool] = {"affects_tokens": False}


def plain(value: object) -> object:
    """Configurations become dictionaries, sequences lists; anything else must be a JSON scalar."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = type(value)
        ours = kind.__module__.split(".")[0] == __name__.split(".")[0]
        fields = {
            field.name: plain(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if field.metadata.get("affects_tokens", True)
        }
        name = kind.__qualname__ if ours else f"{kind.__module__}.{kind.__qualname__}"
        return {"class_path": name, **fields}
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise ConfigError(f"{value!r} in a recipe has no plain form; use numbers, text and lists")


def recipe_dict(recipe: Recipe) -> dict[str, object]:
    """The recipe's plain form."""
    result = plain(recipe)
    assert isinstance(result, dict)
    return result


def differences(stored: object, wanted: object, key: str = "") -> Iterator[str]:
    """One phrase for each value that is not the same."""
    if isinstance(stored, Mapping) and isinstance(wanted, Mapping):
        if stored.get("class_path") != wanted.get("class_path"):
            yield f"{key or 'recipe'}: {stored.get('class_path')} -> {wanted.get('class_path')}"
            return
        for name in dict.fromkeys([*stored, *wanted]):
            inner = f"{key}.{name}" if key else name
            yield from differences(stored.get(name), wanted.get(name), inner)
    elif stored != wanted:
        yield f"{key}: {stored!r} -> {wanted!r}"


def recipe_differences(path: str | Path, recipe: Recipe) -> list[str]:
    """How the recipe that made the tokens in ``path`` differs from ``recipe``; empty: it does not.

    Only the configuration is compared, not the text: the machine that trains need not have it.

    Raises:
        DataError: nothing prepared in ``path``.
    """
    manifest = Manifest.load(Path(path))
    if not recipe.comparable:
        return []
    return list(differences(manifest.recipe, recipe_dict(recipe)))
