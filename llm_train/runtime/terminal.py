"""Writes to standard output, from rank 0 only and without breaking a progress bar."""

import shutil
import sys
import textwrap
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

from llm_train.runtime.launch import find_launch


def say(text: str = "") -> None:
    """Prints a line on rank 0."""
    if find_launch().rank == 0:
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()


def say_piece(text: str) -> None:
    """Writes a text without a line end."""
    sys.stdout.write(text)
    sys.stdout.flush()


def section(title: str, values: Mapping[str, Any]) -> str:
    """Formats names and values as an aligned list under a title.

    On a terminal, a value that is too long goes on below its beginning; a file keeps its line.
    """
    if not values:
        return ""
    width = max(len(key) for key in values)
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    lines = [f"\n{title}"]
    for key, value in values.items():
        line = f"  {key:{width}}  {_shown(value)}"
        if len(line) > columns:
            line = textwrap.fill(
                line,
                max(columns, width + 24),
                subsequent_indent=" " * (width + 4),
                break_long_words=False,
                break_on_hyphens=False,
            )
        lines.append(line)
    return "\n".join(lines)


def say_sections(sections: Mapping[str, Mapping[str, Any]]) -> None:
    """Prints titled lists; one that is empty is left out."""
    for title, values in sections.items():
        if values:
            say(section(title, values))


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_shown(inner)}" for name, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value))
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
