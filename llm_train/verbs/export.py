"""Writes a checkpoint as a folder that Hugging Face's transformers open."""

import argparse
import math
from pathlib import Path

from llm_train.verbs.base import Load, Verb


class ExportVerb(Verb):
    """Writes weights, configuration, tokenizer, model card and proof."""

    reads = "checkpoint"

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """What to write, and where."""
        parser.add_argument("checkpoint", help="checkpoint or run directory")
        parser.add_argument(
            "out", metavar="OUT_PATH", help="folder to write; it must not exist yet"
        )
        parser.add_argument("--shard-gb", type=float, default=5.0, help="most GB of a file (5)")
        parser.add_argument(
            "--dtype",
            choices=("float32", "bfloat16", "float16"),
            default="float32",
            help="of the stored weights",
        )
        parser.add_argument("--gguf", action="store_true", help="a file for llama.cpp, too")
        parser.add_argument(
            "--custom-code",
            action="store_true",
            help="let code travel with a network that transformers has no architecture for",
        )

    def run(self, flags: argparse.Namespace, load: Load) -> None:
        """Ends with 2, and leaves nothing, where no architecture fits or the proof fails."""
        from llm_train.errors import ConfigError
        from llm_train.exchange.outgoing import DTYPES, Form
        from llm_train.run.exported import export
        from llm_train.runtime.terminal import say, section

        if not 0 < flags.shard_gb < math.inf:
            raise ConfigError(f"--shard-gb={flags.shard_gb:g} is no size; 5 is usual")
        form = Form(
            dtype=DTYPES[flags.dtype],
            shard_bytes=int(flags.shard_gb * 1e9),
            custom=flags.custom_code,
            gguf=flags.gguf,
        )
        proof = export(flags.checkpoint, Path(flags.out), load, form)
        say(section("proof", proof.table()))
        trust = ", trust_remote_code=True" if proof.opened_as.startswith("LLMTrain") else ""
        opens = f"AutoModelForCausalLM.from_pretrained({flags.out!r}{trust})"
        file = " and llama.cpp its model.gguf (proof-gguf.json)" if flags.gguf else ""
        say(f"\nwrote {flags.out}: {opens} opens it{file}")
