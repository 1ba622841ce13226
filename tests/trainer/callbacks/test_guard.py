"""What is not finite or a spike on one rank is acted on by all of them, and then written down."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest

from llm_train.testing.attach import attached
from llm_train.testing.checkpoints import final_state
from llm_train.testing.command import refused, run
from llm_train.testing.configs import losses, part, tiny, write
from llm_train.testing.fork_server import ForkServer
from llm_train.trainer.logger.records import Record, read_lines

WORKER = Path(__file__).parents[2] / "checkpoint" / "corrupt_worker.py"
COUNT = Path(__file__).with_name("count_synchronisations.py")
ZERO = pytest.param(
    "zero1",
    2,
    marks=pytest.mark.skipif(not importlib.util.find_spec("deepspeed"), reason="no DeepSpeed"),
)


def events(run_dir: Path, name: str) -> list[Record]:
    return [line for line in read_lines(run_dir / "metrics.jsonl") if line.get("event") == name]


@pytest.mark.distributed
@pytest.mark.parametrize(("strategy", "ranks"), [("single", 0), ("ddp", 2), ("fsdp", 2)])
def test_one_step_is_left_out(
    strategy: str, ranks: int, fork_server: ForkServer, tmp_path: Path
) -> None:
    """The copies of the weights stay equal, the run ends well, and the event is there once."""
    callbacks = [part("Guard", limit=1)]
    config = tiny(tmp_path / "run", trainer__strategy=strategy, trainer__callbacks=callbacks)
    log, path = tmp_path / "log.txt", str(write(tmp_path / "c.yaml", config))
    arguments = ["gradient", str(max(0, ranks - 1)), "3", "fit", "-c", path]
    statuses = fork_server.run(*arguments, ranks=ranks, log=log, script=WORKER)
    assert set(statuses) == {0}, log.read_text()
    (event,) = events(tmp_path / "run", "skipped")
    assert (event["step"], event["samples"]) == (4, [24, 31])
    assert list(losses(tmp_path / "run")) == [1, 2, 3, 5, 6]


@pytest.mark.distributed
def test_too_many_end_the_run(fork_server: ForkServer, tmp_path: Path) -> None:
    callbacks = [part("Guard", limit=1)]
    config = tiny(tmp_path / "run", checkpoint__every="0 steps", trainer__callbacks=callbacks)
    log, path = tmp_path / "log.txt", str(write(tmp_path / "c.yaml", config))
    arguments = ["weight", "0", "3", "fit", "-c", path]
    assert fork_server.run(*arguments, ranks=0, log=log, script=WORKER) == [2], log.read_text()
    assert "step 5: train/loss=nan, grad/norm=nan" in log.read_text()
    assert "whose output is not finite: embedding" in log.read_text()


@pytest.mark.parametrize(("policy", "waits"), [("log", 2), ("skip", 12)])
def test_what_it_costs(policy: str, waits: int, fork_server: ForkServer, tmp_path: Path) -> None:
    """In 12 steps with two log points, at which the metrics are read as well."""
    config = tiny(
        tmp_path / "run",
        steps=12,
        checkpoint__every="0 steps",
        trainer__callbacks=[part("Guard", policy=policy, window=6)],
        trainer__log_every_n_steps=6,
    )
    log, path = tmp_path / "log.txt", str(write(tmp_path / "c.yaml", config))
    arguments = [str(tmp_path / "counts"), "fit", "-c", path]
    assert fork_server.run(*arguments, ranks=0, log=log, script=COUNT) == [0], log.read_text()
    assert json.loads((tmp_path / "counts-0.json").read_text()) == {"tolist": waits + 2}


# --- going back -----------------------------------------------------------------------------------


def spiky(run_dir: Path, policy: str = "rollback", **overrides: Any) -> dict[str, Any]:
    """Twenty steps; a spike in step 13 leads from the data of step 10 to those of step 16."""
    guard = part("Guard", policy=policy, sigmas=50, window=6, before=2, beyond=2)
    return tiny(run_dir, steps=20, trainer__callbacks=[guard], **overrides)


class Jump(pl.Callback):
    """Resumes as if the samples up to 120 had been consumed."""

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        trainer.datamodule.consumed = 120


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_going_back_is_resuming_with_later_data(
    workers: int, fork_server: ForkServer, tmp_path: Path
) -> None:
    """Against a run without the callback, whose position is moved by hand; then resumed itself."""
    config = str(write(tmp_path / "c.yaml", spiky(tmp_path / "run", data__workers=workers)))
    log = tmp_path / "log.txt"
    arguments = ["spike", "0", "12", "fit", "-c", config]
    assert fork_server.run(*arguments, ranks=0, log=log, script=WORKER) == [0], log.read_text()
    plain = str(write(tmp_path / "p.yaml", tiny(tmp_path / "plain", steps=20)))
    assert run("fit", "-c", plain).code == 0
    before = str(tmp_path / "plain" / "checkpoints" / "step-00000010")
    reference = f"--trainer.default_root_dir={tmp_path / 'reference'}"
    with attached(Jump(), first=False):
        assert run("fit", "-c", plain, "--resume", before, reference).code == 0
    expected = losses(tmp_path / "plain") | losses(tmp_path / "reference")
    assert losses(tmp_path / "run") == expected
    weights = final_state(tmp_path / "reference", 20)
    assert all(
        weights[key].equal(value) for key, value in final_state(tmp_path / "run", 20).items()
    )
    for step in (10, 14):  # what is saved after going back has the new position
        saved = str(tmp_path / "run" / "checkpoints" / f"step-{step:08d}")
        again = tmp_path / f"again-{step}"
        options = ["--resume", saved, f"--trainer.default_root_dir={again}"]
        assert run("fit", "-c", config, *options).code == 0
        assert losses(again) == {s: loss for s, loss in expected.items() if s > step}


@pytest.mark.distributed
@pytest.mark.parametrize(("strategy", "ranks"), [("ddp", 2), ("fsdp", 2), ZERO])
def test_all_ranks_go_back(
    strategy: str, ranks: int, fork_server: ForkServer, tmp_path: Path
) -> None:
    config = spiky(tmp_path / "run", trainer__strategy=strategy)
    log, path = tmp_path / "log.txt", str(write(tmp_path / "c.yaml", config))
    arguments = ["spike", "0", "12", "fit", "-c", path]
    statuses = fork_server.run(*arguments, ranks=ranks, log=log, script=WORKER)
    assert set(statuses) == {0}, log.read_text()
    (skipped,), (event,) = (events(tmp_path / "run", name) for name in ("skipped", "rollback"))
    assert (skipped["step"], skipped["samples"]) == (13, [96, 103])
    assert (event["step"], event["spike"], event["samples"]) == (10, 13, [80, 119])
    assert list(losses(tmp_path / "run")) == list(range(1, 21))


def test_a_log_leaves_the_run_alone(fork_server: ForkServer, tmp_path: Path) -> None:
    """Steps are read at log points and saves, of which there is one before the spike is read."""
    config = spiky(tmp_path / "run", policy="log", trainer__log_every_n_steps=5)
    log, path = tmp_path / "log.txt", str(write(tmp_path / "c.yaml", config))
    arguments = ["spike", "0", "12", "fit", "-c", path]
    assert fork_server.run(*arguments, ranks=0, log=log, script=WORKER) == [0], log.read_text()
    first = events(tmp_path / "run", "spike")[0]
    assert (first["step"], first["samples"]) == (13, [96, 103])
    assert not events(tmp_path / "run", "skipped")


@pytest.mark.parametrize(
    ("policy", "change", "remedy"),
    [
        ("skip", {"model__update": "backward"}, "write rollback or log"),
        ("rollback", {"checkpoint__every": "0 steps"}, "set checkpoint.every"),
    ],
)
def test_what_it_cannot_do_is_refused(
    policy: str, change: dict[str, Any], remedy: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "c.yaml", spiky(tmp_path / "run", policy=policy, **change))
    lines = [line for line in refused("check", "-c", str(path)) if "Guard" in line]
    assert f"Guard.policy={policy}" in lines[0]
    assert remedy in lines[0]
