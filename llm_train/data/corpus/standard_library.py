"""Python's own source: real text that every machine which can run this package already has."""

import platform
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from llm_train.data.corpus.files import FileCorpus
from llm_train.data.corpus.formats.base import Span
from llm_train.data.corpus.found import FoundFile, walk
from llm_train.data.corpus.rows import Item, decoded
from llm_train.errors import DataError

# Tests repeat the code they test and hold files in deliberately broken encodings; the package
# directories hold whatever the person installed, which differs from machine to machine.
_WITHOUT = ("test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__")


@dataclass(frozen=True, kw_only=True)
class StandardLibrary(FileCorpus):
    """The ``.py`` files of the running interpreter's standard library, without its tests.

    About 700 files and 12 MB; the text changes with the version of Python. A document's key is its
    path below the library.
    """

    def files(self) -> list[FoundFile]:
        """The files in order of their keys."""
        root = Path(sysconfig.get_path("stdlib"))
        found = sorted(file for file in walk(root, _WITHOUT) if file.path.endswith(".py"))
        if not found:
            raise DataError(
                f"this Python has no source of its standard library in {root}; "
                "use another interpreter or another corpus"
            )
        return found

    def read_file(self, file: FoundFile, span: Span | None) -> Iterator[Item]:
        """The file is one document."""
        yield decoded(file.key, Path(file.path).read_bytes())

    def provenance(self) -> Mapping[str, str | int]:
        """Version of Python, and what files give."""
        return {"python": platform.python_version(), **super().provenance()}
