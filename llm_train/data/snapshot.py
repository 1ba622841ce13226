"""What a preparation has finished so far, as a directory of its own that never changes.

The order of samples depends on all tokens of a run, so that none can be added to a run that has
begun. Training while text is still being prepared is therefore a run on what is finished now.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from llm_train.data.base import Recipe
from llm_train.data.encode_unit import StoredUnit, extras_file
from llm_train.data.merging import Merged
from llm_train.data.shards import TOKEN_BYTES, TOKENIZER
from llm_train.data.start import Start
from llm_train.data.tokenize_corpus import Tokenize
from llm_train.errors import ConfigError, DataError
from llm_train.runtime import disk


def snapshot(recipe: Recipe, path: Path, target: Path) -> None:
    """Makes ``target`` of the finished units of the preparation of ``path`` that is going on.

    Raises:
        ConfigError: ``target`` exists, or the recipe has no units.
        DataError: nothing is finished, or everything is.
    """
    if not isinstance(recipe, Tokenize):
        raise ConfigError(f"data.recipe={type(recipe).__name__} has no parts that end one by one")
    if target.exists():
        raise ConfigError(f"--snapshot={target} exists; choose another path, or remove it")
    staged = target.with_name(f"{target.name}.partial")
    disk.discard(staged)
    staged.mkdir(parents=True)
    try:
        _fill(recipe, path.with_name(f"{path.name}.partial"), staged)
        disk.rename(staged, target)
    except BaseException:
        disk.discard(staged)
        raise


def _fill(recipe: Tokenize, source: Path, directory: Path) -> None:
    """Merges the finished units in ``source``, whose shards get a second name."""
    units: list[StoredUnit] = []
    try:
        for task in recipe.tasks():
            if (unit := StoredUnit.load(source, task)) is None:
                continue
            for name, split in unit.splits.items():
                for shard in split.shards:
                    _link(source / shard.name, directory / shard.name)
                extras = extras_file(source, name, task.number)
                _link(extras, extras_file(directory, name, len(units)))
            units.append(unit)
        for name in (TOKENIZER, TOKEN_BYTES):
            _link(source / name, directory / name)
        end_of_text = Start.load(source).end_of_text
    except FileNotFoundError:
        units = []
    if not units:
        raise DataError(
            f"{source} holds nothing that is finished while the rest is not; "
            "call this while `llm-train prepare` is encoding"
        )
    if unfinished := set(recipe.split_names()).difference(*(unit.splits for unit in units)):
        raise DataError(
            f"nothing of {', '.join(sorted(unfinished))} is finished in {source} yet; "
            "call this again later"
        )
    provenance = {**recipe.provenance(), "units": len(units)}
    recipe.merge(Merged(directory=directory, units=units), provenance, end_of_text)
    for extra in directory.glob("*.npz"):
        extra.unlink()


def _link(source: Path, target: Path) -> None:
    """Gives a finished file a second name, or copies it to another file system."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
