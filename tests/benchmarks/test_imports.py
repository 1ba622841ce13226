"""What benchmarks and scripts, which no type checker reads, import from here exists."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_imported_name_exists() -> None:
    wanted = {
        (node.module, alias.name)
        for folder in ("benchmarks", "scripts")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("llm_train")
        for alias in node.names
    }
    assert len(wanted) > 50
    missing = [
        f"{module}.{name}"
        for module, name in sorted(wanted)
        if not hasattr(importlib.import_module(module), name)
        and not (ROOT / module.replace(".", "/") / f"{name}.py").exists()
    ]
    assert not missing
