"""What somebody probably meant to write; light, because a misspelt verb must not cost torch."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def nearest(word: str, known: Sequence[str]) -> str:
    """What was probably meant, as the end of a sentence; else all there is, if that is not long."""
    found = closest(word, known)
    if found:
        return f"did you mean {found}?"
    return f"known: {', '.join(known)}" if 0 < len(known) <= 15 else "see --help"


def closest(word: str, known: Sequence[str]) -> str:
    """The most similar name, or nothing.

    >>> closest("layerz", ["width", "layers"])
    'layers'
    >>> closest("trainer.prec", ["trainer.precision", "trainer.profiler"])
    'trainer.precision'
    """
    begun = [name for name in known if len(word) > 2 and name.startswith(word)]
    if len(begun) == 1:
        return begun[0]
    lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), list(lower), n=1, cutoff=0.6)
    return lower[close[0]] if close else ""
