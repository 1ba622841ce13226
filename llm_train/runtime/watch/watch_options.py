"""How long a rank may stand still: ``watch`` in YAML."""

from __future__ import annotations

from dataclasses import dataclass

from llm_train.errors import check_at_least

LEAST_SECONDS = 5


@dataclass(frozen=True, kw_only=True)
class WatchOptions:
    """When a rank counts as lost, which ends the job with the stacks of all ranks.

    Args:
        still_seconds: for how long a rank may not get on between two micro-batches, or two batches
            of a validation. Longer than the slowest callback takes. Starting, the first step,
            which may compile, and saving have the ``timeout_minutes`` of the strategy.
        silent_seconds: for how long a rank's watcher may give no sign of life, because the process
            was stopped or its host was cut off. A process that has ended on the same host is found
            at once.
    """

    still_seconds: float = 300.0
    silent_seconds: float = 60.0

    def __post_init__(self) -> None:
        check_at_least(self, LEAST_SECONDS, "still_seconds", "silent_seconds", prefix="watch.")
