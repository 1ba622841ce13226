"""What a refusal looks like."""

from __future__ import annotations

from llm_train.testing.command import Outcome


def require_no_harm(outcome: Outcome, *, refused: bool = True) -> None:
    lines = [line for line in outcome.err.splitlines() if "llm-train: error: " in line]
    assert "Traceback" not in outcome.err
    assert outcome.code == 2 if refused else outcome.code in (0, 2), outcome
    assert bool(lines) == (outcome.code == 2), outcome
