"""Finds all problems of a configuration and prints every derived number; needs no device."""

import argparse

from llm_train.verbs.base import Load, Verb


class Check(Verb):
    """Needs neither the devices nor the data."""

    def run(self, flags: argparse.Namespace, load: Load) -> int:
        """Prints every derived number, or all problems; 1 where fit needs what is not here yet."""
        settings = load(flags.settings)

        from llm_train import check
        from llm_train.runtime.terminal import say, say_sections

        check.require_sound(settings, running=False)
        say_sections(check.table(settings))
        missing = check.missing(settings)
        for note in (*check.notes(settings), *missing):
            say(f"\nnote: {note}")
        say("\nno problems found" + ", but fit needs what the note says first" * bool(missing))
        return int(bool(missing))
