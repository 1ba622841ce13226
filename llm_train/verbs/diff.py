"""Says what sets two runs apart, from settings to the first step at which losses differ."""

import argparse
from pathlib import Path

from llm_train.verbs.base import Load, Verb


class Diff(Verb):
    """Reads what both runs wrote, finished or not, and builds nothing."""

    reads = "files"

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """Which runs."""
        parser.add_argument("first", type=Path, help="run directory, for instance runs/quickstart")
        parser.add_argument("second", type=Path, help="run directory that it is compared with")

    def run(self, flags: argparse.Namespace, load: Load) -> None:
        """Prints a section for each kind of difference."""
        from llm_train.report import RecordedRun
        from llm_train.report.difference import difference
        from llm_train.runtime.terminal import say, say_sections

        found = difference(RecordedRun.read(flags.first), RecordedRun.read(flags.second))
        say(f"{flags.first} -> {flags.second}")
        say_sections(found)
