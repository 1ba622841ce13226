"""Draws what a run did as one HTML page and one PNG."""

from __future__ import annotations

import argparse
from pathlib import Path

from llm_train.verbs.base import Load, Verb


class Report(Verb):
    """Reads what a run wrote, finished or not, and builds nothing."""

    takes_settings = False
    builds = False

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """Which run."""
        parser.add_argument("run", help="run directory, for instance runs/quickstart")

    def run(self, flags: argparse.Namespace, load: Load) -> int:
        """Draws the run and names every file it has."""
        from llm_train.report import RecordedRun, write_report
        from llm_train.run.directory import EARLIER
        from llm_train.runtime.terminal import say, section

        run_dir = Path(flags.run)
        times = RecordedRun.read(run_dir).goodput.table()
        write_report(run_dir)
        say(section("where the time went", times))
        say(f"\n{run_dir} holds:")
        for file in sorted(run_dir.rglob("*")):
            depth = file.relative_to(run_dir).parts
            if depth[0] == EARLIER:
                continue
            if file.is_file() and depth[0] != "checkpoints":
                say(f"  {file}  {file.stat().st_size:,} bytes")
            elif file.is_dir() and len(depth) == 2 and depth[0] == "checkpoints":
                size = sum(f.stat().st_size for f in file.rglob("*") if f.is_file())
                say(f"  {file}/  {size:,} bytes")
        return 0
