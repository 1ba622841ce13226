"""Kills a child at each call that changes a folder: crash_worker.py SCENARIO FOLDER [half]."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path

from tests.checkpoint.disk_faults import disk_faults, killed_at
from tests.checkpoint.saves import SCENARIOS


def in_a_child(action: Callable[[], object]) -> bool:
    """Whether a forked child got to the end of ``action``."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            action()
            code = 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFEXITED(status)


def main(scenario: str, folder: Path, kind: str = "") -> None:
    before, action = SCENARIOS[scenario]
    template = folder / "template"
    template.mkdir(parents=True)
    assert in_a_child(lambda: before(template))
    for number in count(1):
        root = folder / f"{number:04d}"
        shutil.copytree(template, root)

        def faulty(root: Path = root, number: int = number) -> None:
            with disk_faults(root, killed_at(number, halfway=bool(kind))):
                action(root)

        if in_a_child(faulty):
            break


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
