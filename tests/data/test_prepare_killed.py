"""Preparations that are killed at any moment, shared, or interrupted, and then run again."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_train.data.shards import verify

PREPARE = """
import signal, sys, time
from llm_train.data import *
from llm_train.data.corpus import files

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
files.UNIT_BYTES = 4000
recipe = Tokenize(
    corpus=TextFiles(paths=[sys.argv[1]]), tokenizer=TrainBPE(vocab_size=300),
    split=HashSplit(fraction=0.2), workers=2,
)
prepare(recipe, sys.argv[2], progress=False)
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("corpus")
    for number in range(160):
        words = " ".join(f"word{(number * i) % 97}" for i in range(100 + number))
        (directory / f"{number:03d}.txt").write_text(f"Document {number}\n{words}\n")
    return directory


def start(corpus: Path, path: Path, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PREPARE, str(corpus), str(path)]
    return subprocess.Popen(command, text=True, start_new_session=True, **options)


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    path = tmp_path_factory.mktemp("whole") / "tokens"
    assert start(corpus, path).wait(120) == 0
    verify(path, checksums=True)
    return contents(path)


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def finished(path: Path) -> dict[str, int]:
    """When each finished unit of an unfinished preparation was written."""
    staged = path.with_name(f"{path.name}.partial")
    return {file.name: file.stat().st_mtime_ns for file in staged.glob("unit-*.json")}


@pytest.mark.parametrize(
    "trials", [1, pytest.param(50, marks=[pytest.mark.faults, pytest.mark.timeout(3600)])]
)
def test_any_kill_changes_no_byte(
    corpus: Path,
    whole: dict[str, bytes],
    tmp_path: Path,
    trials: int,
    record_property: Callable[[str, object], None],
) -> None:
    draw, reused = random.Random(trials), 0
    for trial in range(trials):
        path = tmp_path / f"{trial}"
        kills = 0
        while not path.exists():
            before = finished(path)
            process = start(corpus, path)
            wanted = draw.randrange(1, 15)
            while process.poll() is None and kills < 4:
                by_chance = kills > 0 and draw.random() < 0.002  # the first leaves something
                if len(finished(path)) - len(before) >= wanted or by_chance:
                    time.sleep(draw.random() / 100)
                    os.killpg(process.pid, signal.SIGKILL)
                    kills += 1
                    break
                time.sleep(0.002)
            process.wait(120)
            kept = finished(path) or (before if path.exists() else {})
            assert all(kept[name] == stamp for name, stamp in before.items()), "done again"
            reused += len(before)
        assert contents(path) == whole
        assert not path.with_name(f"{path.name}.partial").exists()
    record_property("reused", reused)
    assert reused


def test_processes_share_the_work(corpus: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    """As torchrun, a job array and several machines start them: alike, and at about one time."""
    path = tmp_path / "tokens"
    processes = [start(corpus, path) for _ in range(3)]
    assert [process.wait(120) for process in processes] == [0, 0, 0]
    assert contents(path) == whole


def test_ctrl_c_is_one_line_and_loses_nothing(corpus: Path, tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    with start(corpus, path, stderr=subprocess.PIPE) as process:
        while not finished(path):
            assert process.poll() is None
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGINT)
        assert process.stderr is not None
        lines = process.stderr.read().splitlines()
    assert process.returncode != 0
    assert lines[-1] == "KeyboardInterrupt"  # which the command line says in one line
    assert finished(path)
