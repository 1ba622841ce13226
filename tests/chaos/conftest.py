"""Runs that nobody interrupts, for comparison."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import pytest

from llm_train.testing.fork_server import ForkServer, Job
from tests.chaos.jobs import launcher, require_end

Start = Callable[[Path, str, int], Callable[[], Job]]
Unbroken = Callable[[str, int], Path]


@pytest.fixture
def start(fork_server: ForkServer) -> Start:
    """What starts a run in a folder, of a strategy and a number of steps; again and again."""
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
