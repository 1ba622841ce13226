"""Fixtures shared by tests that run the command line in processes of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from llm_train.testing.fork_server import ForkServer


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    """Forks ranks that have everything imported; starting one costs seconds instead of a minute."""
    with ForkServer() as ready:
        yield ready
