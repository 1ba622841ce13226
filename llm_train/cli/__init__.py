"""The command line: ``llm-train VERB -c FILE.yaml [--key=value]``.

``dispatch`` finds the verb, ``walk`` finds every mistake in a configuration by what ``schema``
reads off signatures, and ``parser`` builds what it names, which ``parts`` supervises. ``whole``
has the keys of a configuration; ``data_alone`` reads one of them where torch is not needed.
``json_schema`` writes those signatures down for editors and for ``help``, and ``kept`` stores that.
"""

from llm_train.cli.dispatch import load_settings, main

__all__ = ["load_settings", "main"]
