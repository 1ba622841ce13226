"""A run folder keeps its run: links are followed, two runs are kept apart, nothing starts over."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest

import llm_train
from llm_train.checkpoint.store import CheckpointStore
from llm_train.errors import LLMTrainError
from llm_train.runtime.lease import Lease
from llm_train.testing.command import Outcome, run
from llm_train.testing.configs import losses, tiny, write
from llm_train.testing.fork_server import ForkServer
from llm_train.trainer.logger.records import read_lines


@pytest.fixture(scope="module")
def four_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that has made four steps of six, saved at 2 and 4."""
    folder = tmp_path_factory.mktemp("kept") / "parent" / "run"
    assert fit(folder, "--budget=4 steps").code == 0
    return folder


@pytest.fixture
def folder(four_steps: Path, tmp_path: Path) -> Path:
    """A copy of that folder."""
    return Path(shutil.copytree(four_steps, tmp_path / "parent" / "run", symlinks=True))


def fit(folder: Path, *arguments: str) -> Outcome:
    return run("fit", "-c", str(write(folder.parent.parent / "c.yaml", tiny(folder))), *arguments)


def linked(path: Path) -> Path:
    """Moves ``path`` to another folder, leaves a link, and returns where it is now."""
    outside = next(parent for parent in path.parents if parent.name.startswith("test_"))
    target = outside / f"disk-of-{path.name}"
    path.rename(target)
    path.symlink_to(target)
    return target


@pytest.mark.parametrize("part", ["checkpoints", "checkpoints/step-00000004", ".", ".."])
def test_a_run_behind_a_link_is_continued(part: str, folder: Path) -> None:
    linked(Path(folder / part).resolve())
    assert fit(folder, "--resume", "auto", "--checkpoint.keep_last=1").code == 0
    assert fit(folder, "--resume", "auto", "--budget=8 steps").code == 0
    assert not (folder / "earlier").exists()
    assert list(losses(folder)) == list(range(1, 9))


def test_a_linked_checkpoint_is_the_runs_own_by_its_real_path_too(folder: Path) -> None:
    target = linked(folder / "checkpoints" / "step-00000004")
    assert fit(folder, "--resume", str(target)).code == 0
    assert not (folder / "earlier").exists()


def test_a_fresh_run_keeps_the_link_and_sets_aside_what_was_behind_it(folder: Path) -> None:
    target = linked(folder / "checkpoints")
    for _ in range(2):
        assert fit(folder).code == 0
    assert CheckpointStore(target).steps() == [2, 4, 6]
    first, second = sorted((folder / "earlier").iterdir())
    assert CheckpointStore(first / "checkpoints").newest().path is not None
    assert CheckpointStore(first / "checkpoints").steps() == [2, 4]
    assert CheckpointStore(second / "checkpoints").steps() == [2, 4, 6]


def test_what_an_interrupted_save_left_is_never_followed(folder: Path) -> None:
    theirs = folder.parent / "theirs"
    theirs.mkdir()
    (theirs / "file").touch()
    for name, target in {".staging-step-00000006": theirs, ".deleting-step-1": "nowhere"}.items():
        (folder / "checkpoints" / name).symlink_to(target)
    (folder / "checkpoints" / ".staging-step-00000008").touch()
    assert fit(folder, "--resume", "auto").code == 0
    assert CheckpointStore(folder / "checkpoints").steps() == [2, 4, 6]
    assert not list((folder / "checkpoints").glob(".*"))
    assert (theirs / "file").exists()


def emptied(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


def unmounted(path: Path) -> None:
    linked(path).rename(path.parent.parent / "elsewhere")


@pytest.mark.parametrize("lose", [shutil.rmtree, emptied, unmounted])
def test_auto_does_not_start_over_where_checkpoints_were(
    lose: Callable[[Path], None], folder: Path
) -> None:
    lose(folder / "checkpoints")
    before = (folder / "metrics.jsonl").read_bytes()
    for _ in range(2):
        outcome = fit(folder, "--resume", "auto")
        assert outcome.code == 2
        (line,) = outcome.errors
        assert "checkpoints" in line
        assert "leave out --resume" in line or "mount" in line
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_auto_starts_where_only_a_link_was_prepared(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "parent" / "run").mkdir(parents=True)
    (tmp_path / "parent" / "run" / "checkpoints").symlink_to(tmp_path / "disk")
    assert fit(tmp_path / "parent" / "run", "--resume", "auto").code == 0
    assert CheckpointStore(tmp_path / "disk").steps() == [2, 4, 6]


def test_reading_a_run_needs_no_lease(folder: Path) -> None:
    with Lease(folder=folder).held():
        (line,) = fit(folder).errors
        assert f"pid {os.getpid()}, since" in line
        assert line.endswith("--trainer.default_root_dir=FOLDER")
        assert run("validate", "-c", str(folder.parent.parent / "c.yaml")).code == 0
        assert run("report", str(folder)).code == 0
    assert not (folder / "earlier").exists()


def test_a_run_that_lost_its_folder_stops_writing(tmp_path: Path) -> None:
    lease = tmp_path / "run" / ".lease-00000001"

    class Rival(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.global_step == 3 and lease.exists():
                lease.rename(lease.with_name(".lease-00000002"))

    file = write(tmp_path / "c.yaml", tiny(tmp_path / "run"))
    rival = llm_train.build(llm_train.load_settings(file))
    rival.watch(Rival())
    with pytest.raises(LLMTrainError, match="no longer holds"):
        rival.fit()
    assert list(losses(tmp_path / "run")) == [1, 2, 3]
    assert CheckpointStore(tmp_path / "run" / "checkpoints").steps() == [2]
    assert [path.name for path in (tmp_path / "run").glob(".lease*")] == [".lease-00000002"]


@pytest.mark.distributed
def test_two_runs_and_one_folder(fork_server: ForkServer, tmp_path: Path) -> None:
    """Two at once, of two ranks each: one goes on. After SIGKILL the next one need not wait."""
    folder = tmp_path / "run"
    config = tiny(folder, steps=60, checkpoint__every="20 steps", trainer__strategy="ddp")
    arguments = ("fit", "-c", str(write(tmp_path / "c.yaml", config)))
    logs = [tmp_path / "one.txt", tmp_path / "two.txt"]

    def start(log: Path) -> list[int]:
        return fork_server.run(*arguments, ranks=2, log=log)

    with ThreadPoolExecutor(2) as pool:
        ends = dict(zip(logs, pool.map(start, logs), strict=True))
    winner, loser = sorted(logs, key=lambda log: ends[log][0])
    assert ends[winner] == [0, 0], winner.read_text()
    assert ends[loser][0] == 2
    assert " is in use by another run: " in loser.read_text()
    assert "--trainer.default_root_dir=" in loser.read_text()
    steps = [line["step"] for line in read_lines(folder / "metrics.jsonl") if "event" not in line]
    assert sorted(set(steps)) == list(range(1, 61))
    assert steps.count(30) == 1

    arguments = (*arguments, f"--trainer.default_root_dir={tmp_path / 'killed'}")
    metrics = tmp_path / "killed" / "metrics.jsonl"
    killed = fork_server.run(*arguments, ranks=2, log=logs[0], metrics=metrics, step=25)
    assert killed == [-9, -9]
    assert fork_server.run(*arguments, "--resume", "auto", ranks=2, log=logs[1]) == [0, 0]
    assert f"taking over {tmp_path / 'killed'}" in logs[1].read_text()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    file = write(tmp_path / "c.yaml", tiny(tmp_path / "file" / "run"))
    outcome = run("fit", "-c", str(file))
    assert outcome.code == 2
    assert "cannot write to the run folder" in outcome.errors[0]
