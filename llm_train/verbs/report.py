"""Draws what runs did, each alone or compared, as one HTML page and one PNG."""

import argparse
from contextlib import suppress
from pathlib import Path

from llm_train.runtime.terminal import say, section
from llm_train.verbs.base import Load, Verb


class Report(Verb):
    """Reads what runs wrote, finished or not, and builds nothing."""

    reads = "files"

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """Which runs, and where to."""
        parser.add_argument(
            "run", nargs="+", type=Path, help="run directories, for instance runs/quickstart"
        )
        parser.add_argument(
            "--out",
            type=Path,
            metavar="OUT_FOLDER",
            help="where report.html and report.png are written; default: the run's folder, for "
            "several runs the folder that they lie in",
        )
        parser.add_argument(
            "--watch", action="store_true", help="serve the page on this machine while runs write"
        )
        parser.add_argument("--port", type=int, default=8765, help="of --watch; 0 is any free one")

    def run(self, flags: argparse.Namespace, load: Load) -> None:
        """Draws the runs, and says the same in figures."""
        from llm_train.report import read_runs, write_report

        runs = read_runs(flags.run)
        if flags.watch:
            _watch(flags)
            return
        parents = {run.path.parent for run in runs.values()}
        shared = parents.pop() if len(parents) == 1 else Path()
        first = next(iter(runs.values()))
        html, picture = write_report(runs, flags.out or (first.path if len(runs) == 1 else shared))
        for label, run in runs.items():
            say(section(f"{run.path}: {label}", run.summary()))
            say(section("where the time went", run.goodput.table()))
        say(f"\nwrote {html} and {picture}")


def _watch(flags: argparse.Namespace) -> None:
    from llm_train.report.live import server

    with server(flags.run, flags.port) as found, suppress(KeyboardInterrupt):
        say(f"http://127.0.0.1:{found.server_port}/ shows the runs; Ctrl-C ends it")
        found.serve_forever()
