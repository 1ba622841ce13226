"""Draws what runs did, each alone or compared, as one HTML page and one PNG."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from llm_train.verbs.base import Load, Verb

if TYPE_CHECKING:
    from llm_train.report import RecordedRun


class Report(Verb):
    """Reads what runs wrote, finished or not, and builds nothing."""

    takes_settings = False
    builds = False

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """Which runs, and where to."""
        parser.add_argument(
            "run", nargs="+", type=Path, help="run directories, for instance runs/quickstart"
        )
        parser.add_argument(
            "--out",
            type=Path,
            metavar="FOLDER",
            help="where report.html and report.png are written; default: the run's folder, for "
            "several runs the folder that they lie in",
        )
        parser.add_argument(
            "--watch", action="store_true", help="serve the page on this machine while runs write"
        )
        parser.add_argument("--port", type=int, default=8765, help="of --watch; 0 is any free one")

    def run(self, flags: argparse.Namespace, load: Load) -> int:
        """Draws the runs; of one alone, also names every file it has."""
        from llm_train.report import read_runs, write_report
        from llm_train.runtime.terminal import say, section

        if flags.watch:
            from llm_train.report.live import serve

            serve(flags.run, flags.port)
            return 0
        runs = read_runs(flags.run)
        if len(runs) == 1:
            [run] = runs.values()
            html, picture = write_report(runs, flags.out or run.path)
            say(section("where the time went", run.goodput.table()))
            _list_files(run)
        else:
            html, picture = write_report(runs, flags.out or _shared(runs))
            for label, run in runs.items():
                say(section(f"{run.path}: {label}", run.summary()))
        say(f"\nwrote {html} and {picture}")
        return 0


def _shared(runs: dict[str, RecordedRun]) -> Path:
    """The folder that all runs lie in, or the present one."""
    parents = {run.path.parent for run in runs.values()}
    return parents.pop() if len(parents) == 1 else Path()


def _list_files(run: RecordedRun) -> None:
    from llm_train.run.directory import EARLIER
    from llm_train.runtime.terminal import say

    say(f"\n{run.path} holds:")
    for file in sorted(run.path.rglob("*")):
        depth = file.relative_to(run.path).parts
        if depth[0] == EARLIER:
            continue
        if file.is_file() and depth[0] != "checkpoints":
            say(f"  {file}  {file.stat().st_size:,} bytes")
        elif file.is_dir() and len(depth) == 2 and depth[0] == "checkpoints":
            size = sum(f.stat().st_size for f in file.rglob("*") if f.is_file())
            say(f"  {file}/  {size:,} bytes")
