"""Whatever call of a save the disk refuses, the checkpoint of before stays, and a line says so."""

from __future__ import annotations

import os
import shutil
from itertools import count
from pathlib import Path

import pytest

from llm_train.checkpoint.agreement import SaveFailed
from llm_train.testing.command import run
from llm_train.testing.configs import tiny, write
from tests.checkpoint.disk_faults import ERRORS, disk_faults, failing_at
from tests.checkpoint.saves import NEW, OLD, SCENARIOS, require_going_on, value_of

SHORT = ("next", "full", False)  # is in the default suite
FAULTS = [pytest.mark.faults]

CASES = [
    pytest.param(
        scenario, error, lasting, marks=[] if (scenario, error, lasting) == SHORT else FAULTS
    )
    for scenario in ("next", "replace")
    for error in ERRORS
    for lasting in (False, True)
]


@pytest.mark.parametrize(("scenario", "error", "lasting"), CASES)
def test_every_call_of_a_save(
    scenario: str, error: str, lasting: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before, action = SCENARIOS[scenario]
    template = tmp_path / "template"
    before(template)
    expected = ["step-00000400" if scenario == "next" else "step-00000200"]
    for number in count(1):
        root = tmp_path / f"{number:04d}"
        shutil.copytree(template, root)
        caplog.clear()
        said = ""
        act = failing_at(number, ERRORS[error], lasting=lasting)
        with disk_faults(root, act) as calls:
            try:
                action(root)
            except SaveFailed as failure:
                said = str(failure)
        if number > calls.made:
            break
        ours = [r.getMessage() for r in caplog.records if r.name.startswith("llm_train")]
        said = "\n".join([said, *ours]).strip()
        assert value_of(root) in ((OLD, NEW) if error == "short" or said else (NEW,))
        if error == "short":
            assert not said
            assert value_of(root) == NEW
        else:  # silent is only what did no harm, as making a folder that is there
            left = sorted(path.name for path in root.iterdir())
            assert said or (left == expected and value_of(root) == NEW), (number, left)
            assert all(str(root) in line for line in said.splitlines())
        if not lasting:
            assert not list(root.glob(".staging-*"))
        require_going_on(root)


@pytest.mark.parametrize("error", ["readonly", "denied", "full"])
@pytest.mark.parametrize("what", ["run", "run/checkpoints"])
def test_a_folder_that_cannot_be_written_is_one_line_before_training(
    what: str, error: str, tmp_path: Path
) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    config = write(tmp_path / "c.yaml", tiny(tmp_path / "run"))
    with disk_faults(tmp_path / what, failing_at(1, ERRORS[error], lasting=True)):
        done = run("fit", "-c", str(config))
    assert done.code == 2
    (line,) = done.errors
    assert str(tmp_path / "run") in line
    assert os.strerror(ERRORS[error]) in line
    assert "step 1/" not in done.out
