"""What somebody meant to write; light, because a misspelt verb must not cost torch."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from llm_train.errors import ConfigError

_PATH = re.compile(r"~/|\$(\w+|\{\w+\})/|\$(HOME|\{HOME\})$")


def nearest(word: str, known: Sequence[str], listing: str = "--help") -> str:
    """What was probably meant, as the end of a sentence; else all there is, or what lists it."""
    found = closest(word, known)
    if found:
        return f"did you mean {found}?"
    return f"known: {', '.join(known)}" if 0 < len(known) <= 15 else f"see {listing}"


def closest(word: str, known: Sequence[str]) -> str:
    """The most similar name, or nothing.

    >>> closest("layerz", ["width", "layers"])
    'layers'
    >>> closest("trainer.prec", ["trainer.precision", "trainer.profiler"])
    'trainer.precision'
    >>> closest("--lr", ["--plan", "--help"])  # two dashes are not alike
    ''
    """
    begun = [name for name in known if len(word) > 2 and name.startswith(word)]
    if len(begun) == 1:
        return begun[0]
    lower = {name.lower().lstrip("-"): name for name in known}
    close = difflib.get_close_matches(word.lower().lstrip("-"), list(lower), n=1, cutoff=0.6)
    return lower[close[0]] if close else ""


def expanded(value: Any) -> Any:
    """A value in which each path that begins with ``~/`` or with a variable is what a shell reads.

    Raises:
        ConfigError: there is no such variable.
    """
    if isinstance(value, Mapping):
        return {key: expanded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [expanded(inner) for inner in value]
    if not isinstance(value, str) or not _PATH.match(value):
        return value
    path = os.path.expandvars(os.path.expanduser(value))
    if path[0] in "~$":
        raise ConfigError(f"{value}: there is no such variable; set it, or write it out")
    return path
