"""Saves, replacements, downloads and cleaning are killed at every call that changes the disk.

The folder after each kill is what any crash at that moment leaves; ``half`` tears writes as well.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from llm_train.testing.fork_server import ForkServer
from llm_train.testing.ranks import environment
from tests.checkpoint import disk_faults
from tests.checkpoint.saves import NEW, OLD, SCENARIOS, require_going_on, save, value_of

WORKER = Path(__file__).with_name("crash_worker.py")
ROOT = str(Path(__file__).parents[2])


@pytest.mark.parametrize("kind", [(), pytest.param(("half",), marks=pytest.mark.faults)], ids=str)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_moment_has_a_complete_checkpoint(
    scenario: str, kind: tuple[str, ...], fork_server: ForkServer, tmp_path: Path
) -> None:
    log = tmp_path / "log.txt"
    options = {"script": WORKER, "environment": {"PYTHONPATH": ROOT}}
    folder = tmp_path / "points"
    statuses = fork_server.run(scenario, str(folder), *kind, ranks=0, log=log, **options)
    assert statuses == [0], log.read_text()
    roots = sorted(folder.glob("[0-9]*"))
    values = [value_of(root) for root in roots]
    if scenario == "clean":  # the replacement was complete before
        assert set(values) == {NEW}
    else:  # old up to some call, new from then on
        assert values == sorted(values)
        assert set(values) == {OLD, NEW}
        assert len(values) > 15
    for root in roots:
        require_going_on(root)


@pytest.mark.faults
@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
def test_no_system_call_is_missed(tmp_path: Path) -> None:
    """What C code writes by itself would be no crash point."""
    script = (
        "import sys, pathlib, tests.checkpoint.saves as s; s.save(pathlib.Path(sys.argv[1]), 1, 1)"
    )
    traced, log = tmp_path / "traced", tmp_path / "log.txt"
    calls = (
        "openat,creat,write,writev,pwrite64,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,"
        "rmdir,mkdir,mkdirat,link,linkat,symlink,symlinkat,truncate,ftruncate"
    )
    command = ["strace", "-f", "-y", "-o", str(log), "-e", f"trace={calls}", sys.executable]
    command += ["-B", "-c", script, str(traced)]
    subprocess.run(command, check=True, env={**environment(), "PYTHONPATH": ROOT})
    lines = [line for line in log.read_text().splitlines() if str(traced) in line]
    changing = [line for line in lines if "O_RDONLY" not in line]
    seen = Counter(re.sub(r"^\d+ +", "", line).split("(")[0] for line in changing)
    ours = Counter(disk_faults.count(tmp_path / "own", lambda: save(tmp_path / "own", 1, 1.0)))
    names = {"openat": "open", "replace": "rename", "remove": "unlink"}
    assert total(seen, names) == total(ours, names)


def total(calls: Counter[str], names: dict[str, str]) -> Counter[str]:
    found: Counter[str] = Counter()
    for name, number in calls.items():
        found[names.get(name, name)] += number
    return found
