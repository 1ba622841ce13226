"""A save, a replacement and the cleaning at a start are killed at every call that changes the disk.

The folder after each kill is what any crash at that moment leaves; ``half`` tears writes as well.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_train.testing.fork_server import ForkServer
from tests.checkpoint.saves import NEW, OLD, SCENARIOS, require_going_on, value_of

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
        assert len(values) > 30
    for root in roots:
        require_going_on(root)
