"""Writes text with a checkpoint."""

import argparse
import itertools

from llm_train.errors import check_at_least
from llm_train.verbs.base import Load, Verb

SAMPLING = ("tokens", "temperature", "top_k", "top_p", "stop", "seed")


class Generate(Verb):
    """Continues a prompt on standard output."""

    reads = "checkpoint"

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """What to continue, and how to choose tokens."""
        parser.add_argument("checkpoint", help="checkpoint or run directory")
        parser.add_argument("--prompt", default="", help="text to continue")
        parser.add_argument("--tokens", type=int, default=200, help="most tokens to add")
        parser.add_argument("--temperature", type=float, default=0.8, help="0 is greedy")
        parser.add_argument("--top-k", type=int, default=0, help="keep the k likeliest; 0 is all")
        parser.add_argument("--top-p", type=float, default=1.0, help="keep this much probability")
        parser.add_argument("--stop", default="", help="token text that ends the sample")
        parser.add_argument("--seed", type=int, default=0, help="same seed, same text")
        parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")

    def run(self, flags: argparse.Namespace, load: Load) -> None:
        """Writes each piece as soon as it is known."""
        check_at_least(flags, 1, "tokens", prefix="--")
        from llm_train.run.pretrained import load_checkpoint
        from llm_train.runtime.terminal import say_piece

        pretrained = load_checkpoint(flags.checkpoint, load, flags.device)
        how = {name: getattr(flags, name) for name in SAMPLING}
        text = pretrained.generate(flags.prompt, **how)
        for piece in itertools.chain([flags.prompt], text, ["\n"]):
            say_piece(piece)
