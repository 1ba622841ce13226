"""Where two parts meet, the meeting has a type: ``Any`` is for holes that a library leaves."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import llm_train

PACKAGE = Path(llm_train.__file__).parent
LIMIT = 60
"""Arguments, variables and attributes annotated ``Any``; there were 203 in November 2026."""


def names_typed_any(source: str) -> list[str]:
    """Names annotated with ``Any`` alone, but for ``*args`` and ``**kwargs`` handed through."""
    tree = ast.parse(source)
    arguments = [node for node in ast.walk(tree) if isinstance(node, ast.arguments)]
    named = [a for each in arguments for a in [*each.posonlyargs, *each.args, *each.kwonlyargs]]
    found = [(a.arg, a.annotation) for a in named]
    found += [
        (ast.unparse(node.target), node.annotation)
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign)
    ]
    return [name for name, kind in found if kind is not None and ast.unparse(kind) == "Any"]


def test_the_counter_sees_arguments_and_variables():
    assert names_typed_any("def f(a: Any, *args: Any) -> Any:\n    b: Any = a") == ["a", "b"]


def test_few_names_are_typed_any():
    found = {
        str(path.relative_to(PACKAGE)): names
        for path in sorted(PACKAGE.rglob("*.py"))
        if (names := names_typed_any(path.read_text(encoding="utf-8")))
    }
    assert sum(len(names) for names in found.values()) <= LIMIT, found


def test_no_two_classes_or_modules_share_a_name():
    files = [path for path in PACKAGE.rglob("*.py") if path.stem not in ("__init__", "base")]
    modules = Counter(path.stem for path in files)
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py"))
    classes = Counter(
        node.name.lstrip("_")
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    )
    assert {name for name, count in (modules + classes).items() if count > 1} == set()
