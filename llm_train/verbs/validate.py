"""Scores a checkpoint on all held-out data."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from llm_train.verbs.base import Load, Verb

if TYPE_CHECKING:
    from llm_train.run.training import Result
    from llm_train.settings import Settings


class Validate(Verb):
    """Scores one checkpoint and changes nothing."""

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """Which checkpoint."""
        parser.add_argument(
            "--checkpoint", default="auto", metavar="auto|PATH", help="what to score"
        )

    def run(self, flags: argparse.Namespace, load: Load) -> int:
        """Prints loss and bits per byte."""
        settings = load(flags.settings)

        from llm_train.run.training import validate
        from llm_train.runtime.terminal import say, section

        result = validate(settings, flags.checkpoint)
        say(f"{result.path}: step {result.step}")
        say(section("held out", held_out(settings, result)))
        return 0


def held_out(settings: Settings, result: Result) -> dict[str, float]:
    """Held-out metrics by the names that are printed, and what the data compare them with."""
    rows = {"loss (nats per token)": round(result.metrics["val/loss"], 4)}
    if "val/bits_per_byte" in result.metrics:
        rows["bits per byte"] = round(result.metrics["val/bits_per_byte"], 4)
    for key, value in settings.data.source.description().items():
        if key.endswith("bits_per_byte") and value is not None:
            rows[key.replace("_", " ")] = round(float(value), 4)
    return rows
