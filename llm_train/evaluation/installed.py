"""Says what is missing before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec


def missing_harness(key: str) -> Iterator[str]:
    """The problem of ``key`` where lm-evaluation-harness is not installed."""
    if find_spec("lm_eval") is None:
        yield (
            f"{key} needs lm-evaluation-harness, which is not installed: "
            "pip install 'llm-train[eval]'"
        )
