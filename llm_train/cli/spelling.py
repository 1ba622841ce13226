"""What somebody meant to write; light, because a misspelt verb must not cost torch."""

import difflib
import os
import re
from collections.abc import Callable, Mapping, Sequence

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


def texts(change: Callable[[str], object], value: object) -> object:
    """A value in which every text, however deep it stands, is changed."""
    if isinstance(value, Mapping):
        return {key: texts(change, inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [texts(change, inner) for inner in value]
    return change(value) if isinstance(value, str) else value


def expanded(text: str) -> str:
    """What a shell reads where a path begins with ``~/`` or with a variable.

    Raises:
        ConfigError: there is no such variable.
    """
    path = os.path.expandvars(os.path.expanduser(text)) if _PATH.match(text) else text
    if _PATH.match(path):
        raise ConfigError(f"{text}: there is no such variable; set it, or write it out")
    return path
