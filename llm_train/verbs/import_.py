"""Makes a run of a folder in Hugging Face's format, to be trained on."""

import argparse
from pathlib import Path

from llm_train.verbs.base import Load, Verb


class Import(Verb):
    """Writes a checkpoint, the tokenizer, a configuration that continues training, and proof."""

    reads = "checkpoint"

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """What to read, and where to write."""
        parser.add_argument("folder", help="config.json, safetensors, tokenizer.json")
        parser.add_argument("out", metavar="OUT_PATH", help="run directory to write; not there yet")

    def run(self, flags: argparse.Namespace, load: Load) -> None:
        """Ends with 2, and leaves nothing, where nothing fits or the proof fails."""
        from llm_train.exchange.incoming import import_folder
        from llm_train.runtime.terminal import say, section

        out = Path(flags.out)
        proof = import_folder(Path(flags.folder), out)
        say(section("proof", proof.table()))
        say(f"\nwrote {out}; name your text in {out}/config.yaml, then prepare and fit -c with it")
