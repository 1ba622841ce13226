"""Scores a checkpoint on the held-out data, or as much of it as data.validate_tokens says."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from llm_train.errors import ConfigError
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

    def run(self, flags: argparse.Namespace, load: Load) -> None:
        """Prints loss, perplexity and bits per byte of each held-out set."""
        settings = load(flags.settings)

        from llm_train.run.training import validate
        from llm_train.runtime.terminal import say, section

        result = validate(settings, flags.checkpoint)
        say(f"{result.path}: step {result.step}")
        if not result.metrics:
            raise ConfigError(
                "data.source holds no held-out text to validate on; prepare it with a split that "
                "holds some out, or with held_out sets"
            )
        say(section("held out", held_out(settings, result)))


def held_out(settings: Settings, result: Result) -> dict[str, float]:
    """Held-out metrics by the names that are printed, and what the data compare them with."""
    units = {"loss": "loss (nats per token)", "bits_per_byte": "bits per byte"}
    rows: dict[str, float] = {}
    for metric, score in result.metrics.items():
        name, _, kind = metric.removeprefix("val/").rpartition("/")
        if kind in ("loss", "perplexity", "bits_per_byte"):
            rows[f"{name} {units.get(kind, kind)}".lstrip()] = round(score, 4)
    for key, value in settings.data.source.description().items():
        if key.endswith("bits_per_byte") and value is not None:
            rows[key.replace("_", " ")] = round(float(value), 4)
    return rows
