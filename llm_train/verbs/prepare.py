"""Makes the tokens that `data.source` reads, as `data.recipe` says."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from llm_train.verbs.base import Load, Verb


class Prepare(Verb):
    """Turns text into token shards."""

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """Whether to overwrite, how to compare, and what is only looked at."""
        parser.add_argument("--force", action="store_true", help="replace what is there")
        parser.add_argument(
            "--reread", action="store_true", help="read all text to compare it with what is there"
        )
        parser.add_argument(
            "--snapshot",
            default="",
            metavar="PATH",
            help="make a directory of what a preparation that is going on has finished, and end",
        )

    def run(self, flags: argparse.Namespace, load: Load) -> int:
        """Prepares the data once; the same recipe again costs nothing."""
        settings = load(flags.settings)

        from llm_train.data.preparation import prepare
        from llm_train.data.snapshot import snapshot
        from llm_train.data.tally import skipped_lines
        from llm_train.errors import ConfigError
        from llm_train.runtime.terminal import say, section

        source = settings.data.source
        if source.folder is None:
            raise ConfigError(
                f"data.source={type(source).__name__} reads nothing that could be prepared; "
                "only TokenShards does"
            )
        recipe = settings.data.recipe
        if flags.snapshot:
            snapshot(recipe, source.folder, Path(flags.snapshot))
            return 0
        # What was compared, and which library encodes; Python shows warnings only by itself.
        logging.basicConfig(format="%(message)s")
        logging.getLogger("llm_train.data").setLevel(logging.INFO)
        manifest = prepare(recipe, source.folder, force=flags.force, reread=flags.reread)
        say(section("data", source.description()))
        if manifest.skipped:
            say(section("skipped", skipped_lines(manifest.skipped, manifest.examples)))
        return 0
