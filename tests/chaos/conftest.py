"""Runs that nobody interrupts, for comparison."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from llm_train.testing.fork_server import ForkServer
from tests.chaos.jobs import launcher, require_end

Unbroken = Callable[[str, int], Path]


@pytest.fixture(scope="session")
def unbroken(fork_server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Unbroken:
    """The folder of a run of a strategy and a number of steps, made once for all trials."""

    @cache
    def made(strategy: str, steps: int) -> Path:
        folder = tmp_path_factory.mktemp("unbroken")
        require_end(launcher(fork_server, folder, strategy, steps)(), folder)
        return folder / "run"

    return made
