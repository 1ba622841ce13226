"""Makes a directory of token shards that is complete or not there.

Everything is written to ``PATH.partial`` and renamed at the end. A directory that has the name is
therefore whole, and preparing again only has to compare recipes to know whether there is work. What
a killed preparation leaves in ``PATH.partial`` is where the next one goes on.
"""

import logging
import shutil
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from llm_train.data.base import Recipe
from llm_train.data.recipe import differences, recipe_dict
from llm_train.data.shards import verify
from llm_train.data.sharing import Claims
from llm_train.data.token_manifest import FILE_NAME, Manifest
from llm_train.data.token_source import TokenSource
from llm_train.errors import ConfigError, DataError, LLMTrainError
from llm_train.runtime import disk
from llm_train.runtime.launch import find_launch
from llm_train.runtime.startup import seconds_since_start
from llm_train.units import Duration

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


@dataclass(eq=False)
class DataOptions:
    """Training windows in an order fixed by (seed, data, sample index), held-out windows in full.

    Args:
        source: where tokens come from.
        recipe: how ``llm-train prepare`` makes what the source reads.
        workers: loader processes per rank; 0 reads in the training process, which is fast enough
            for memory-mapped tokens.
        validate_tokens: each validation scores so many tokens of each held-out set at most, rounded
            up to whole windows, which are spread evenly over it; 0 tokens scores all.
    """

    source: TokenSource
    recipe: Recipe = Prepared()
    workers: int = 0
    validate_tokens: Duration = Duration(0, "tokens")  # noqa: RUF009 - nothing changes it

    def __post_init__(self) -> None:
        if (workers := self.workers) < 0:
            raise ConfigError(f"data.workers={workers} must be 0 (read in the process) or more")
        if (most := self.validate_tokens).unit != "tokens":
            raise ConfigError(f"data.validate_tokens={most} must be in tokens, as in '10M tokens'")


def prepare(
    recipe: Recipe,
    path: str | Path,
    force: bool = False,
    progress: bool = True,
    reread: bool = False,
) -> Manifest:
    """Follows ``recipe`` into the directory ``path``, unless its tokens are there already.

    Any number of processes may be given the same work; each does its share, and all return when it
    is done. What an interrupted call has finished is not done again.

    Args:
        recipe: how the tokens are made.
        path: of the directory, which appears when it is complete.
        force: replace what another recipe, or other text, left there.
        progress: show a progress bar on stderr.
        reread: read all text again to compare it with what the tokens were made of.

    Raises:
        ConfigError: ``path`` holds something else.
        DataError: text or tokenizer cannot be read, or the tokens there are damaged.
    """
    target = Path(path)
    if not recipe.comparable:
        recipe.write(target, progress)
    _check_replaceable(target)
    if _is_done(target, force):
        return _compared(target, recipe, reread)
    staged = target.with_name(f"{target.name}.partial")
    staged.mkdir(parents=True, exist_ok=True)
    try:
        if not _is_done(target, force):  # by another process, just now
            recipe.write(staged, progress)
            claims = Claims(staged)
            claims.once("publish", lambda: not staged.exists(), partial(_publish, staged, target))
    except (LLMTrainError, OSError) as error:
        if not staged.exists() and _is_done(target, force):  # it went while this process looked
            return verify(target)
        if isinstance(error, LLMTrainError):
            _remove_unused(staged)
            raise
        raise DataError(
            f"{error.filename or staged}: {error.strerror}; what is finished stays in {staged}, "
            "and the same command goes on from there once this is put right"
        ) from error
    _remove_unused(staged)
    return verify(target)


def _is_done(target: Path, force: bool) -> bool:
    """Whether the tokens are there, and are not to be replaced.

    Of several processes that share the work, one may come when the others have finished it.
    """
    if not (target / FILE_NAME).is_file():
        return False
    age = time.time() - (target / FILE_NAME).stat().st_mtime
    return not force or (find_launch().ranks > 1 and age < seconds_since_start())


def _remove_unused(staged: Path) -> None:
    """Removes what no later call could use."""
    if not any(staged.glob("unit-*.json")) and not Claims(staged).alive():
        shutil.rmtree(staged, ignore_errors=True)


def _compared(target: Path, recipe: Recipe, reread: bool) -> Manifest:
    manifest = verify(target)
    changed = _changes(manifest, recipe)
    # Files that were copied or touched have other stamps; only reading tells whether their text has
    # changed.
    if reread and all(line.partition(":")[0].endswith("stamps") for line in changed):
        same = recipe.content() == manifest.content
        changed = [] if same else ["the text, all of which was read again"]
    if changed:
        raise ConfigError(
            f"{target} was prepared differently ({'; '.join(changed)}); "
            "choose another path, or replace it with --force"
        )
    how = "all of it was read" if reread else "sizes and samples of its content; --reread reads all"
    _log.info("%s is up to date with its recipe and its text (compared: %s)", target, how)
    return manifest


def _changes(manifest: Manifest, recipe: Recipe) -> list[str]:
    changed = list(differences(manifest.recipe, recipe_dict(recipe)))
    if changed:
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


def _publish(staged: Path, target: Path) -> None:
    """Gives the finished directory its name, without what its manifest does not list."""
    claims = Claims(staged)
    keep = {FILE_NAME, claims.path("publish").name, *(f.name for f in Manifest.load(staged).files)}
    for leftover in staged.iterdir():
        if leftover.name not in keep:
            leftover.unlink(missing_ok=True)
    disk.sync(staged)
    disk.replace(staged, target, target.with_name(f"{target.name}.replaced"))
    Claims(target).drop("publish")
