"""Fixtures shared by tests that run the command line in processes of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from llm_train.testing.fork_server import Nursery


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """A fork server: ranks have everything imported and start in seconds instead of a minute."""
    with Nursery(deepspeed=True) as ready:
        yield ready
