"""What a preparation has finished so far, as a directory of its own that never changes.

The order of samples depends on all tokens of a run, so that none can be added to a run that has
begun. Training while text is still being prepared is therefore a run on what is finished now.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from llm_train.data.base import Recipe
from llm_train.errors import ConfigError
from llm_train.runtime import disk


def snapshot(recipe: Recipe, path: Path, target: Path) -> None:
    """Makes ``target`` of the finished units of the preparation of ``path`` that is going on.

    Raises:
        ConfigError: ``target`` exists.
        DataError: nothing is finished, or everything is.
    """
    if target.exists():
        raise ConfigError(f"--snapshot={target} exists; choose another path, or remove it")
    staged = target.with_name(f"{target.name}.partial")
    disk.discard(staged)
    staged.mkdir(parents=True)
    try:
        recipe.snapshot(path.with_name(f"{path.name}.partial"), staged)
        disk.rename(staged, target)
    except BaseException:
        disk.discard(staged)
        raise


def link(source: Path, target: Path) -> None:
    """Gives a finished file a second name, or copies it to another file system."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
