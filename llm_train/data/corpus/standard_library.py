"""Python's own source: real text that every machine which can run this package already has."""

from __future__ import annotations

import os
import platform
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from llm_train.data.corpus.files import FileCorpus
from llm_train.data.corpus.formats.base import Span
from llm_train.data.corpus.found import FoundFile
from llm_train.data.corpus.rows import Item, decoded
from llm_train.errors import DataError

# Tests repeat the code they test and hold files in deliberately broken encodings; the package
# directories hold whatever the person installed, which differs from machine to machine.
_WITHOUT = frozenset(
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
)


@dataclass(frozen=True, kw_only=True)
class StandardLibrary(FileCorpus):
    """The ``.py`` files of the running interpreter's standard library, without its tests.

    About 700 files and 12 MB; the text changes with the version of Python. A document's key is its
    path below the library.
    """

    def files(self) -> list[FoundFile]:
        """The files in order of their keys."""
        root, found = sysconfig.get_path("stdlib"), []
        for directory, inner, names in os.walk(root):
            inner[:] = [name for name in inner if name not in _WITHOUT]
            for path in (os.path.join(directory, name) for name in names if name.endswith(".py")):
                facts, key = os.stat(path), os.path.relpath(path, root).replace(os.sep, "/")
                found.append(FoundFile(key, path, facts.st_size, str(facts.st_mtime)))
        if not found:
            raise DataError(
                f"this Python has no source of its standard library in {root}; "
                "use another interpreter or another corpus"
            )
        return sorted(found)

    def read_file(self, file: FoundFile, span: Span | None) -> Iterator[Item]:
        """The file is one document."""
        yield decoded(file.key, Path(file.path).read_bytes())

    def provenance(self) -> Mapping[str, str | int]:
        """Version of Python, and what files give."""
        return {"python": platform.python_version(), **super().provenance()}
