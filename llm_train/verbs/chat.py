"""Writes text with a checkpoint in turns with whoever types."""

import argparse
from contextlib import suppress

from llm_train.errors import ConfigError, check_at_least
from llm_train.verbs.base import Load, Verb
from llm_train.verbs.generate import SAMPLING, Generate


class Chat(Verb):
    """Continues what was typed and written so far, turn by turn, after ``--prompt``."""

    reads = "checkpoint"

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """Those of generate."""
        Generate().add_flags(parser)
        parser.add_argument("--turn", default="{}", help="text of a turn, {} for what was typed")

    def run(self, flags: argparse.Namespace, load: Load) -> None:
        """Until the end of the input; of an answer that is broken off, what was written stays."""
        check_at_least(flags, 1, "tokens", prefix="--")
        from llm_train.run.pretrained import load_checkpoint
        from llm_train.runtime.terminal import say, say_piece

        pretrained = load_checkpoint(flags.checkpoint, load, flags.device)
        say("/new forgets, Ctrl-C breaks an answer off, Ctrl-D ends")
        how = {name: getattr(flags, name) for name in SAMPLING}
        text = flags.prompt
        with suppress(EOFError):
            while True:
                if (typed := input("> ")) == "/new":
                    text = flags.prompt
                    continue
                turn = flags.turn.replace("{}", typed)
                try:
                    pretrained.start(text + turn)
                except ConfigError as error:
                    say(f"{error}; or begin afresh with /new")
                    continue
                text += turn
                with suppress(KeyboardInterrupt):
                    for piece in pretrained.generate(text, **how):
                        say_piece(piece)
                        text += piece
                say()
                how["seed"] += 1
