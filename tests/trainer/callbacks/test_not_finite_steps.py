"""All ranks leave out the step that is not finite on one of them, and say what was in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_train.testing.configs import losses, part, tiny, write
from llm_train.testing.fork_server import ForkServer
from llm_train.trainer.logger.records import read_lines

WORKER = Path(__file__).parents[2] / "checkpoint" / "corrupt_worker.py"


@pytest.mark.distributed
@pytest.mark.parametrize(("strategy", "ranks"), [("single", 0), ("ddp", 2), ("fsdp", 2)])
def test_one_step_is_left_out(
    strategy: str, ranks: int, fork_server: ForkServer, tmp_path: Path
) -> None:
    """The copies of the weights stay equal, the run ends well, and the event is there once."""
    callbacks = [part("SkipNotFinite", limit=1)]
    config = tiny(tmp_path / "run", trainer__strategy=strategy, trainer__callbacks=callbacks)
    log, path = tmp_path / "log.txt", str(write(tmp_path / "c.yaml", config))
    arguments = ["gradient", str(max(0, ranks - 1)), "3", "fit", "-c", path]
    statuses = fork_server.run(*arguments, ranks=ranks, log=log, script=WORKER)
    assert set(statuses) == {0}, log.read_text()
    lines = read_lines(tmp_path / "run" / "metrics.jsonl")
    (event,) = (line for line in lines if line.get("event") == "skipped")
    assert (event["step"], event["samples"]) == (4, [24, 31])
    assert list(losses(tmp_path / "run")) == [1, 2, 3, 5, 6]


@pytest.mark.distributed
def test_too_many_end_the_run(fork_server: ForkServer, tmp_path: Path) -> None:
    callbacks = [part("SkipNotFinite", limit=1)]
    config = tiny(tmp_path / "run", checkpoint__every="0 steps", trainer__callbacks=callbacks)
    log, path = tmp_path / "log.txt", str(write(tmp_path / "c.yaml", config))
    arguments = ["weight", "0", "3", "fit", "-c", path]
    assert fork_server.run(*arguments, ranks=0, log=log, script=WORKER) == [2], log.read_text()
    assert "gradient of step 5 is not finite, and 1 steps have been skipped" in log.read_text()
    assert "whose output is not finite: embedding" in log.read_text()
