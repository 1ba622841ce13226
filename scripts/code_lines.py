"""Counts lines of code by folder, without docstrings, comments and blank lines.

The project measures its size with this script: ``python scripts/code_lines.py [FOLDER ...]``.
"""

from __future__ import annotations

import argparse
import ast
import io
import tokenize
from collections import Counter
from pathlib import Path

_NOT_CODE = (
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
)


def code_lines(source: str) -> int:
    """Counts the lines that hold a token of code and lie outside every docstring."""
    prose: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, "body", None)
        for child in body if isinstance(body, list) else []:
            value = child.value if isinstance(child, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                prose |= set(range(value.lineno, (value.end_lineno or value.lineno) + 1))
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _NOT_CODE:
            code |= set(range(token.start[0], token.end[0] + 1))
    return len(code - prose)


def main(folders: list[str]) -> None:
    """Prints a row for each part of each folder, then the folder's total."""
    for folder in folders:
        root, rows = Path(folder), Counter[str]()
        for file in sorted(root.rglob("*.py")):
            inner = file.relative_to(root).parts
            # model/ and trainer/ hold the families, each of which gets a row of its own.
            depth = 2 if inner[0] in ("model", "trainer") and len(inner) > 2 else 1
            rows["/".join(inner[:depth])] += code_lines(file.read_text(encoding="utf-8"))
        for name, count in sorted(rows.items()):
            print(f"{count:7,}  {folder}/{name}")
        print(f"{rows.total():7,}  {folder}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="*", default=["llm_train", "tests"])
    main(parser.parse_args().folder)
