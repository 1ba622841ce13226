"""The command line: ``llm-train VERB -c FILE.yaml [--key=value]``.

``command`` knows the verbs, ``parser`` is the only file that knows jsonargparse, ``documents``
reads YAML, and ``messages`` turns a parser's complaint into one line that names the key.
"""

from llm_train.cli.dispatch import load_settings, main

__all__ = ["load_settings", "main"]
