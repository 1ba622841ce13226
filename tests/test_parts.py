"""Parts speak for themselves: a new one is one file, and nobody else asks for a part by name."""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from llm_train.trainer.strategy import known_words

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "llm_train"
FAMILIES = {
    *("model/network", "model/loss", "model/optimizer", "model/schedule", "model/recompute"),
    *("data", "data/corpus", "data/tokenizer"),
    *("trainer/strategy", "trainer/callbacks", "trainer/logger"),
}

# --- nobody asks for a part by name ---------------------------------------------------------------

ALLOWED: dict[str, tuple[int, str]] = {}
"""File -> number of comparisons in it, and why the part cannot be asked instead."""

UNFINISHED: tuple[str, ...] = ()
"""Rooms that compare strategies still."""


def defined() -> dict[str, set[str]]:
    """Class -> the families' folders that define it; ``Part`` is everybody's."""
    found: dict[str, set[str]] = defaultdict(set, {"Part": set()})
    for folder in FAMILIES:
        for path in (PACKAGE / folder).glob("*.py"):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef):
                    found[node.name].add(folder)
    return found


def comparisons(path: Path, classes: dict[str, set[str]], words: set[str]) -> Iterator[ast.AST]:
    """Tests of the class of another folder's part, and comparisons with such a name or word."""
    home = str(path.parent.relative_to(PACKAGE))
    own = {name for name, folders in classes.items() if home in folders}
    text = path.read_text(encoding="utf-8")
    foreign = {name for name in classes.keys() - own if f"class {name}" not in text}
    words = {word for word in words if home != "trainer/strategy"} | foreign
    for node in ast.walk(ast.parse(text)):
        calls = {
            n.func.id
            for n in ast.walk(node)
            if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
        }
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in ("isinstance", "issubclass") and names(node) & foreign:
                yield node
        elif isinstance(node, ast.Compare) and (
            texts(node) & words or ("type" in calls and names(node) & foreign)
        ):
            yield node


def names(node: ast.AST) -> set[str]:
    """Names in an expression, but for those of libraries, as in ``nn.Linear``."""
    plain = {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
    return plain | {
        inner.attr
        for inner in ast.walk(node)
        if isinstance(inner, ast.Attribute)
        and ast.unparse(inner.value) not in ("nn", "optim", "pl")
    }


def texts(node: ast.AST) -> set[str]:
    constants = [inner for inner in ast.walk(node) if isinstance(inner, ast.Constant)]
    return {inner.value for inner in constants if isinstance(inner.value, str)}


def test_nobody_asks_for_a_part_by_name() -> None:
    classes, words = defined(), {*known_words()} - {"auto"}
    found: list[tuple[str, str]] = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = str(path.relative_to(PACKAGE))
        if not name.startswith(UNFINISHED):
            found += [(name, ast.unparse(node)) for node in comparisons(path, classes, words)]
    expected = {name: number for name, (number, _) in ALLOWED.items()}
    assert Counter(name for name, _ in found) == expected, found
    assert len(found) <= 10
