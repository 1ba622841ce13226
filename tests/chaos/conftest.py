"""Runs that nobody interrupts, for comparison; and a mark that no payload may leave."""

from __future__ import annotations

import os
import resource
import time
import zlib
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

import pytest

from benchmarks import faults
from llm_train.testing.fork_server import ForkServer, Job
from tests.chaos.jobs import launcher, require_end

# What a refusal may take, of the processor and of memory that no trial before has taken.
SECONDS, MEBIBYTES = 30.0, 500
SHARDS = 8
Start = Callable[..., Callable[[], Job]]
Unbroken = Callable[[str, int], Path]


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks the tests of the matrix, and leaves those of one shard, an eighth of them."""
    for item in items:
        if item.nodeid.startswith(faults.TESTS):
            item.add_marker(pytest.mark.chaos)
    if shard := int(os.environ.get("SHARD") or 0):
        others = [i for i in items if zlib.crc32(i.nodeid.encode()) % SHARDS != shard - 1]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in others]


@pytest.fixture
def start(fork_server: ForkServer) -> Start:
    """What starts a run again and again: in a folder, with a strategy and a number of steps."""
    return partial(launcher, fork_server)


@pytest.fixture(scope="session")
def unbroken(fork_server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Unbroken:
    """The folder of a run of a strategy and a number of steps, made once for all trials."""

    @cache
    def made(strategy: str, steps: int) -> Path:
        folder = tmp_path_factory.mktemp("unbroken")
        require_end(launcher(fork_server, folder, strategy, steps)(), folder)
        return folder / "run"

    return made


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[Path]:
    """A file that must never exist, and limits on what a trial takes."""
    began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield tmp_path / "mark"
    assert not (tmp_path / "mark").exists()
    assert time.process_time() - began < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEBIBYTES * 1024
