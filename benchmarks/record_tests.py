"""A plugin of pytest that records each test as a row, and leaves out what has passed before.

pytest -p benchmarks.record_tests, with the file of rows in the environment variable RESULTS. A row
is written as soon as its test has ended, so that a command that is cut off can be given again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from benchmarks.judge import read_rows
from benchmarks.studies.environment import described

STUDY = "tests"


def passed(file: Path) -> set[str]:
    """The tests whose last row in ``file`` says that they passed, with this very code."""
    commit = described()["commit"]
    rows = [row for row in read_rows(file) if row["study"] == STUDY]
    last = {row["case"]: row for row in rows if row["versions"]["commit"] == commit}
    return {case for case, row in last.items() if row["outcome"] == "passed"}


class Recorder:
    """Writes rows, in the process that hears of all tests.

    Args:
        file: rows are appended to it.
    """

    def __init__(self, file: Path) -> None:
        self._file, self._versions = file, described()
        file.parent.mkdir(parents=True, exist_ok=True)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test that is skipped or fails while it is set up has no call."""
        if report.when != "call" and (report.passed or report.when == "teardown"):
            return
        row: dict[str, Any] = {
            "study": STUDY,
            "case": report.nodeid,
            "outcome": report.outcome,
            "seconds": round(report.duration, 2),
            **dict(report.user_properties),  # what a test counted with ``record_property``
        }
        if not report.passed:
            row["error"] = report.longreprtext[-3000:]
        row |= {"time": datetime.now(UTC).isoformat(timespec="seconds"), "versions": self._versions}
        with open(self._file, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def pytest_configure(config: pytest.Config) -> None:
    """Only the process that starts the others records."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(Path(os.environ["RESULTS"])))


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> Iterator[None]:
    """All processes leave out the same tests, since none has run yet when they are collected."""
    yield
    before = passed(Path(os.environ["RESULTS"]))
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in before])
    items[:] = [item for item in items if item.nodeid not in before]
