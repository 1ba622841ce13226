"""Fixtures shared by tests that run the command line in processes of its own."""

from __future__ import annotations

import pytest

from llm_train.testing.fork_server import ForkServer


@pytest.fixture(scope="session")
def fork_server() -> ForkServer:
    """Forks ranks that have everything imported; starting one costs seconds instead of a minute."""
    return ForkServer()
