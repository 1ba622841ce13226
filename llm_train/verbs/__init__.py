"""The verbs of the command line, one file a verb, found by the names of the files.

Names and summaries are read from the files without importing them, because an overview must not
cost what the verbs import.
"""

import ast
import importlib
from pathlib import Path

from llm_train.discovery import concrete
from llm_train.verbs.base import Verb


def _files() -> dict[str, Path]:
    """The file of each verb; an underscore at its end is no part of the name."""
    files = [file for folder in __path__ for file in sorted(Path(folder).glob("*.py"))]
    return {f.stem.rstrip("_"): f for f in files if f.stem not in ("__init__", "base")}


def summaries() -> dict[str, str]:
    """Every verb with the first line of its file's docstring."""
    found = {}
    for name, file in _files().items():
        doc = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        found[name] = doc.partition("\n")[0]
    return found


def find(name: str) -> Verb:
    """The verb called ``name``: the one subclass that its file defines."""
    module = f"{__name__}.{_files()[name].stem}"
    importlib.import_module(module)
    kinds = concrete(Verb)  # type: ignore[type-abstract]
    return next(kind for kind in kinds if kind.__module__ == module)()
