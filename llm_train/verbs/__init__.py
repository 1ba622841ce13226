"""The verbs of the command line, one file a verb, found by the names of the files.

Names and summaries are read from the files without importing them, because an overview must not
cost what the verbs import.
"""

from __future__ import annotations

import ast
import importlib
import keyword
from pathlib import Path

from llm_train.discovery import concrete
from llm_train.verbs.base import Verb


def summaries() -> dict[str, str]:
    """Every verb with the first line of its file's docstring."""
    found = {}
    for folder in __path__:
        for file in sorted(Path(folder).glob("*.py")):
            if file.stem not in ("__init__", "base"):
                doc = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
                found[file.stem.rstrip("_")] = doc.partition("\n")[0]
    return found


def find(name: str) -> Verb:
    """The verb called ``name``: the one subclass that its file defines."""
    module = f"{__name__}.{name}{'_' * keyword.iskeyword(name)}"
    importlib.import_module(module)
    kinds = concrete(Verb)  # type: ignore[type-abstract]
    return next(kind for kind in kinds if kind.__module__ == module)()
