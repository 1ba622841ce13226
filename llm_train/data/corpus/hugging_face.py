"""Data sets of the Hugging Face ``datasets`` library, from its hub or from disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_train.data.base import Corpus, Document, Skipped, Unit
from llm_train.data.corpus.files import document
from llm_train.errors import ConfigError, DataError

_SAVED = ("state.json", "dataset_dict.json")  # what save_to_disk leaves for one split, for several


@dataclass(frozen=True, kw_only=True)
class HuggingFace(Corpus):
    """One split of a data set; a document's key is the split's name, a colon and the row number.

    Attributes:
        path: name on the hub, a directory written by ``save_to_disk``, or one of data files.
        name: configuration of the data set; "" is its default.
        split: of the data set, slices included, as in ``train[:1%]``.
        field: the column that holds the text.
        revision: commit or tag on the hub; "" is the newest, so that preparing again later may read
            other text.
        streaming: read over the network row by row, keeping nothing on disk.
    """

    path: str
    name: str = ""
    split: str = "train"
    field: str = "text"
    revision: str = ""
    streaming: bool = False

    def __post_init__(self) -> None:
        for name in ("path", "split", "field"):
            if not getattr(self, name):
                raise ConfigError(f"{name}='' must not be empty")
        if self._saved() and (self.name or self.revision or self.streaming):
            raise ConfigError(
                f"path={self.path} was written by save_to_disk, where name, revision and streaming "
                "have no effect; leave them out"
            )

    def units(self) -> list[Unit]:
        """One, whose stamp hashes the state that ``save_to_disk`` writes; all else would cost."""
        states = sorted(Path(self.path).rglob("state.json")) if self._saved() else []
        digest = hashlib.sha256(b"".join(state.read_bytes() for state in states))
        return [Unit(name=self.split, size=0, stamp=digest.hexdigest() if states else "unknown")]

    def documents(self, unit: Unit) -> Iterator[Document | Skipped]:
        """Rows in order."""
        for number, row in enumerate(self._rows()):
            key = f"{self.split}:{number}"
            if self.field not in row:
                known = ", ".join(row)
                raise DataError(f"field={self.field!r} is no column of {self.path}; it has {known}")
            text = row[self.field]
            yield document(key, text) if isinstance(text, str) else Skipped(key, "not a string")

    def _saved(self) -> bool:
        return any((Path(self.path) / name).is_file() for name in _SAVED)

    def _rows(self) -> Iterable[dict[str, object]]:
        try:
            import datasets
        except ImportError:
            raise ConfigError(
                "the corpus HuggingFace needs the package datasets; "
                "run pip install 'llm-train[datasets]'"
            ) from None
        rows: Any  # one of four classes, none of them typed
        if self._saved():
            rows = datasets.load_from_disk(self.path)
            if isinstance(rows, datasets.DatasetDict):
                if self.split not in rows:
                    known = ", ".join(rows)
                    raise DataError(f"split={self.split!r} is not in {self.path}; it has {known}")
                rows = rows[self.split]
        else:
            rows = datasets.load_dataset(
                self.path,
                self.name or None,
                split=self.split,
                revision=self.revision or None,
                streaming=self.streaming,
            )
        # Only the text: decoding the other columns (images, say) would cost and may need packages.
        names = rows.column_names
        if names is not None and self.field in names:
            rows = rows.select_columns([self.field])
        return rows  # type: ignore[no-any-return]
