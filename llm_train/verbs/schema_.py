"""Prints the JSON schema of a configuration, by which editors complete keys and find typos."""

import argparse
import json

from llm_train.verbs.base import Load, Verb


class SchemaVerb(Verb):
    """Writes ``llm-train.schema.json``, which ``# yaml-language-server: $schema=`` names."""

    reads = "files"

    def run(self, flags: argparse.Namespace, load: Load) -> None:
        """Prints it."""
        from llm_train.runtime.terminal import say

        say(json.dumps(load.schema(), indent=1))
