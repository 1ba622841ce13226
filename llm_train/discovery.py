"""Finds the classes of a family: whoever adds a file to a folder edits nothing else.

A class is known by its base, so it is enough that its module has been imported: the command line,
the words of strategies and the documentation ask the base for its subclasses.
"""

import importlib
import pkgutil
import sys
from collections.abc import Container
from typing import TypeVar

T = TypeVar("T")


def load(package: str, *, skip: Container[str] = ()) -> None:
    """Imports every module of a folder, but not the folders in it.

    Args:
        package: name of the folder's package, which is being imported.
        skip: modules that define nothing a configuration could name, and are expensive.
    """
    for found in pkgutil.iter_modules(sys.modules[package].__path__):
        if not found.ispkg and found.name not in skip:
            importlib.import_module(f"{package}.{found.name}")


def concrete(base: type[T]) -> list[type[T]]:
    """The subclasses of ``base`` that are loaded and can be constructed, in the order of names."""
    found: dict[str, type[T]] = {}
    waiting: list[type[T]] = base.__subclasses__()
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        if not getattr(kind, "__abstractmethods__", None):
            found[f"{kind.__name__} {kind.__module__}"] = kind
    return [found[key] for key in sorted(found)]
