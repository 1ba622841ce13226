"""Makes a directory of token shards that is complete or not there.

Everything is written to ``PATH.partial`` and renamed at the end. A directory that has the name is
therefore whole, and preparing again only has to compare recipes to know whether there is work.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llm_train.data.base import Recipe
from llm_train.data.recipe import differences, recipe_dict
from llm_train.data.shards import add_sums, verify
from llm_train.data.token_manifest import FILE_NAME, Manifest
from llm_train.errors import ConfigError, DataError
from llm_train.runtime import disk

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Prepared(Recipe):
    """No recipe: the tokens were made elsewhere and are taken as they are."""

    comparable = False

    def write(self, directory: Path, progress: bool) -> None:
        """Refuses: there is nothing to make tokens from."""
        raise ConfigError(
            "data.recipe is Prepared: these tokens are made elsewhere; copy them here, or set "
            "data.recipe to say how to make them"
        )


def prepare(
    recipe: Recipe, path: str | Path, force: bool = False, progress: bool = True
) -> Manifest:
    """Follows ``recipe`` into the directory ``path``, unless its tokens are there already.

    Args:
        recipe: how the tokens are made.
        path: of the directory, which appears when it is complete.
        force: replace what another recipe, or other text, left there.
        progress: show a progress bar on stderr.

    Raises:
        ConfigError: ``path`` holds something else.
        DataError: text or tokenizer cannot be read, or the tokens there are damaged.
    """
    target = Path(path)
    if not recipe.comparable:
        recipe.write(target, progress)
    _check_replaceable(target)
    if (target / FILE_NAME).is_file() and not force:
        manifest = verify(target)
        if changed := _changes(manifest, recipe):
            raise ConfigError(
                f"{target} was prepared differently ({'; '.join(changed)}); "
                "choose another path, or replace it with --force"
            )
        _log.info("%s is up to date", target)
        return manifest if manifest.has_sums else add_sums(target)
    with _staged(target) as directory:
        recipe.write(directory, progress)
    return verify(target)


def _changes(manifest: Manifest, recipe: Recipe) -> list[str]:
    changed = list(differences(manifest.recipe, recipe_dict(recipe)))
    if changed:  # then the text may be another too; its details would only bury the reason
        return changed
    try:
        return list(differences(manifest.provenance, dict(recipe.provenance())))
    except DataError as error:  # tokens are often used where their text is not
        _log.warning("cannot tell whether the text has changed since it was prepared: %s", error)
        return []


def _check_replaceable(target: Path) -> None:
    """``--force`` may remove token shards, never anything else that happens to have the name."""
    if not target.exists() or (target / FILE_NAME).is_file():
        return
    if not target.is_dir() or any(target.iterdir()):
        raise ConfigError(f"{target} exists and holds no prepared tokens; choose another path")


@contextmanager
def _staged(target: Path) -> Iterator[Path]:
    """An empty directory that takes the place of ``target`` if the block succeeds."""
    staged = target.with_name(f"{target.name}.partial")
    staged.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(staged, os.O_RDONLY)
    try:
        _lock(descriptor, staged)  # outside the block that removes: it may be another's directory
        try:
            for leftover in staged.iterdir():
                leftover.unlink()
            yield staged
            os.fsync(descriptor)
            disk.replace(staged, target, target.with_name(f"{target.name}.replaced"))
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise
    finally:
        os.close(descriptor)


def _lock(descriptor: int, staged: Path) -> None:
    """The lock goes with the process, so an interrupted one leaves none behind."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mine = os.path.samestat(os.fstat(descriptor), staged.stat())
    except (BlockingIOError, FileNotFoundError):
        mine = False
    if not mine:
        raise ConfigError(f"another process is preparing {staged}; wait for it to finish")
