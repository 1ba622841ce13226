"""Settings by a pattern of names, as a shell writes one: ``*`` also matches dots.

Of several patterns that fit a name, the last one holds.
"""

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase


def holding(patterns: Iterable[str], name: str) -> str:
    """The pattern that holds for a name; "" if none fits.

    >>> holding(["layers.*", "*.up.weight"], "layers.0.mlp.up.weight")
    '*.up.weight'
    """
    return next((p for p in reversed(list(patterns)) if fnmatchcase(name, p)), "")


def useless(patterns: Iterable[str], names: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """Patterns that hold for none of the names, and whether they fit some where others hold."""
    patterns, names = list(patterns), list(names)
    at_work = {holding(patterns, name) for name in names}
    for pattern in patterns:
        if pattern not in at_work:
            yield pattern, any(fnmatchcase(name, pattern) for name in names)
