"""A recipe as plain values: kept alongside the tokens and compared with another one.

The plain form is what a YAML file would say: ``class_path`` and the fields. Fields that do not
change the tokens carry ``metadata=NO_EFFECT_ON_TOKENS`` and are left out.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from llm_train.data.base import Recipe
from llm_train.data.token_manifest import Manifest
from llm_train.errors import ConfigError

NO_EFFECT_ON_TOKENS: Mapping[str, bool] = {"affects_tokens": False}
# A field that an earlier version had not: at its default, the recipe is what it was.
ADDED_LATER: Mapping[str, bool] = {"added_later": True}


def recipe_dict(recipe: Recipe) -> dict[str, object]:
    """The recipe's plain form: what JSON keeps of it."""
    plain: dict[str, object] = json.loads(json.dumps(recipe, default=_plain))
    return plain


def _plain(value: object) -> dict[str, object]:
    """One part of a recipe; ``json`` itself goes on into lists, mappings and the part's fields."""
    if not dataclasses.is_dataclass(value):
        raise ConfigError(f"{value!r} in a recipe has no plain form; use numbers, text and lists")
    kind = type(value)
    ours = kind.__module__.split(".")[0] == __name__.split(".")[0]
    # Short names of our own classes, so that moving a module makes no recipe look changed.
    return {
        "class_path": kind.__qualname__ if ours else f"{kind.__module__}.{kind.__qualname__}",
        **{
            field.name: getattr(value, field.name)
            for field in dataclasses.fields(value)
            if field.metadata.get("affects_tokens", True) and not _is_new(value, field)
        },
    }


def _is_new(value: object, field: dataclasses.Field[object]) -> bool:
    """Whether a field was added later and says nothing."""
    if not field.metadata.get("added_later"):
        return False
    made = field.default_factory
    default = field.default if made is dataclasses.MISSING else made()
    return bool(getattr(value, field.name) == default)


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
