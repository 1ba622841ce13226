"""Averages the weights of checkpoints, or takes the average that a run kept."""

import argparse
from pathlib import Path

from llm_train.verbs.base import Load, Verb


class Average(Verb):
    """Writes a run that holds weights alone, to be exported, validated or begun with."""

    reads = "files"

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """What to average, and where to write."""
        parser.add_argument("run", metavar="RUN_PATH", help="run directory")
        parser.add_argument("out", metavar="OUT_PATH", help="folder to write; it must not exist")
        what = parser.add_mutually_exclusive_group(required=True)
        what.add_argument("--last", type=int, help="mean of so many of the last checkpoints")
        what.add_argument("--ema", action="store_true", help="what the callback EMA has kept")

    def run(self, flags: argparse.Namespace, load: Load) -> None:
        """Leaves nothing where something is missing."""
        from llm_train.errors import ConfigError
        from llm_train.exchange.averaged_weights import (
            average_checkpoints,
            last_checkpoints,
            take_ema,
        )
        from llm_train.runtime.terminal import say

        run, out = Path(flags.run), Path(flags.out)
        if not run.is_dir():
            raise ConfigError(f"{run} is no folder; name a run directory")
        if flags.ema:
            found = last_checkpoints(run, 1)
            written = take_ema(found[0], out)
        else:
            if flags.last < 2:
                raise ConfigError(f"--last={flags.last} averages nothing; take at least 2")
            found = last_checkpoints(run, flags.last)
            written = average_checkpoints(found, out)
        say(f"wrote {written} from {', '.join(path.name for path in found)}")
        say(f"llm-train export {out} FOLDER writes it for transformers")
