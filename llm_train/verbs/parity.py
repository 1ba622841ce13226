"""Trains under every strategy and compares them with one process."""

import argparse
from pathlib import Path

from llm_train.verbs.base import Load, Verb


class Parity(Verb):
    """Starts its own processes, one for each rank of each variant."""

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """What to compare."""
        parser.add_argument(
            "--ranks", type=whole_numbers, default=[2], metavar="N[,N]", help="numbers of ranks"
        )
        parser.add_argument("--steps", type=int, default=50, help="optimizer steps of a run")
        parser.add_argument(
            "--strategies", default="", metavar="NAME[,NAME]", help="which; without it, all"
        )
        parser.add_argument(
            "--json", default="", metavar="OUT_FILE", help="write the table to FILE"
        )

    def run(self, flags: argparse.Namespace, load: Load) -> int:
        """Prints a row for each variant; 1 if one is out of tolerance."""
        settings = load(flags.settings)

        from llm_train.parity.comparison import parity
        from llm_train.parity.variants import variants

        names = flags.strategies.split(",") if flags.strategies else ()
        return parity(
            settings,
            load,
            variants(names, flags.ranks),
            steps=flags.steps,
            options=[f"--allow-import={name}" for name in flags.allow_import],
            json_file=Path(flags.json) if flags.json else None,
        )


def whole_numbers(text: str) -> list[int]:
    """Reads numbers between commas; argparse names this function where they are none."""
    return [int(number) for number in text.split(",")]
