"""Makes the tokens that `data.source` reads, as `data.recipe` says."""

from __future__ import annotations

import argparse
import logging
from typing import TYPE_CHECKING

from llm_train.errors import ConfigError
from llm_train.verbs.base import Load, Verb

if TYPE_CHECKING:
    from llm_train.data.preparation import DataOptions


class Prepare(Verb):
    """Turns text into token shards."""

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """Whether to overwrite, and how to compare."""
        parser.add_argument("--force", action="store_true", help="replace what is there")
        parser.add_argument(
            "--reread", action="store_true", help="read all text to compare it with what is there"
        )

    def run(self, flags: argparse.Namespace, load: Load) -> None:
        """Prepares the data once; the same recipe again costs nothing."""
        prepare_data(load.data(flags.settings), force=flags.force, reread=flags.reread)


def prepare_data(data: DataOptions, *, force: bool = False, reread: bool = False) -> None:
    """Makes the tokens, unless they are there, and says what they are."""
    from llm_train.data.preparation import prepare
    from llm_train.data.reading import skipped_lines
    from llm_train.runtime.launch import find_launch
    from llm_train.runtime.terminal import say, section

    # What was compared, and which library encodes; Python shows warnings only by itself.
    logging.basicConfig(format="%(message)s")
    logging.getLogger("llm_train.data").setLevel("WARNING" if find_launch().rank else "INFO")
    source = data.source
    if source.folder is None:
        raise ConfigError(
            f"data.source={type(source).__name__} reads nothing that could be prepared; "
            "only TokenShards does"
        )
    manifest = prepare(data.recipe, source.folder, force=force, reread=reread)
    say(section("data", source.description()))
    if manifest.skipped:
        say(section("skipped", skipped_lines(manifest.skipped, manifest.examples)))
