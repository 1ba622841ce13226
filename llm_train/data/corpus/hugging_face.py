"""Data sets of the Hugging Face ``datasets`` library, from its hub or from disk."""

import dataclasses
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from llm_train.data.base import Corpus, Unit
from llm_train.data.corpus.files import UNIT_BYTES
from llm_train.data.corpus.opening import named_cause
from llm_train.data.corpus.rows import Item, RowText
from llm_train.data.recipe import ADDED_LATER
from llm_train.errors import ConfigError, DataError, line_of
from llm_train.runtime.extras import library

_SAVED = ("state.json", "dataset_dict.json")  # what save_to_disk leaves for one split, for several
_REACH_SECONDS = 5


@dataclass(frozen=True, kw_only=True)
class RowRange(Unit):
    """Consecutive rows of a split; ``stop`` is 0 where nobody knows how many there are."""

    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class HuggingFace(Corpus):
    """One split of a data set; a document's key is the split's name, a colon and the row number.

    Attributes:
        path: name on the hub, a directory written by ``save_to_disk``, one of data files, or a
            single data file.
        name: configuration of the data set; "" is its default.
        split: of the data set, slices included, as in ``train[:1%]``.
        field: the column that holds the text: a name, a path (``data.text``) or a template of
            several (``"{title} {body}"``).
        where: column to the values that it may have, as in ``{language: [en, de]}``; other rows are
            skipped.
        revision: commit or tag on the hub; "" is the newest, so that preparing again later may read
            other text.
        streaming: read over the network row by row, keeping nothing on disk.
    """

    path: str
    name: str = ""
    split: str = "train"
    field: str = "text"
    where: dict[str, list[str]] = dataclasses.field(default_factory=dict, metadata=ADDED_LATER)
    revision: str = ""
    streaming: bool = False

    def __post_init__(self) -> None:
        for name in ("path", "split", "field"):
            if not getattr(self, name):
                raise ConfigError(f"{name}='' must not be empty")
        self._text  # noqa: B018 - which checks the field
        if self._saved() and (self.name or self.revision or self.streaming):
            raise ConfigError(
                f"path={self.path} was written by save_to_disk, where name, revision and streaming "
                "have no effect; leave them out"
            )

    def units(self) -> list[RowRange]:
        """Ranges of rows of about 64 MiB; a stream is one."""
        rows = self._rows()
        if self.streaming:
            return [RowRange(name=self.split, size=0, stamp=self.revision, start=0, stop=0)]
        count, size = len(rows), rows.data.nbytes
        step = max(1, count * UNIT_BYTES // max(1, size))
        return [
            RowRange(
                name=f"{self.split}:{start}",
                size=size * min(step, count - start) // count,
                stamp=self._stamp(rows),
                start=start,
                stop=min(start + step, count),
            )
            for start in range(0, count, step)
        ]

    def documents(self, unit: Unit) -> Iterator[Item]:
        """Rows in order."""
        assert isinstance(unit, RowRange), "a corpus is given its own units"
        rows = self._rows()
        if unit.stop:
            rows = rows.select(range(unit.start, unit.stop))
        with self._named_cause():
            for number, row in enumerate(rows, start=unit.start):
                yield self._text.document(f"{self.split}:{number}", row)

    @cached_property
    def _text(self) -> RowText:
        return RowText(field=self.field, where=self.where)

    def _saved(self) -> bool:
        return any((Path(self.path) / name).is_file() for name in _SAVED)

    def _stamp(self, rows: Any) -> str:
        """Of the state that ``save_to_disk`` writes; elsewhere the library's own."""
        states = sorted(Path(self.path).rglob("state.json")) if self._saved() else []
        digest = sha256(b"".join(state.read_bytes() for state in states))
        return digest.hexdigest() if states else str(rows._fingerprint)

    def _named_cause(self) -> AbstractContextManager[None]:
        what = f"{self.path} with split={self.split!r}"
        return named_cause(what, "correct path, name, split or revision")

    def _rows(self) -> Any:  # one of two classes, neither of them typed
        datasets = library("datasets", "datasets", "this corpus")
        if not Path(self.path).exists():
            require_hub(f"path={self.path} is no file or directory", "correct the path, ")
        with self._named_cause():
            rows = self._loaded(datasets)
            # Only the text: decoding other columns (images, say) would cost and may need packages.
            names = rows.column_names
            return rows if names is None else rows.select_columns(self._text.columns(names))

    def _loaded(self, datasets: ModuleType) -> Any:
        if self._saved():
            rows = datasets.load_from_disk(self.path)
            if not isinstance(rows, datasets.DatasetDict):
                return rows
            if self.split not in rows:
                raise ValueError(f"it has no such split but {', '.join(rows)}")
            return rows[self.split]
        file = Path(self.path)
        only = {"data_files": {self.split.partition("[")[0]: file.name}} if file.is_file() else {}
        return datasets.load_dataset(
            str(file.parent) if only else self.path,
            self.name or None,
            split=self.split,
            revision=self.revision or None,
            streaming=self.streaming,
            **only,
        )


def require_hub(what: str, remedy: str = "") -> None:
    """Asks for the Hub once: its own library would try for half a minute and more.

    Args:
        what: is not here.
        remedy: what else to do, with a comma behind it.

    Raises:
        DataError: it cannot be reached.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return  # then it looks into its cache only
    try:
        urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=_REACH_SECONDS).close()
    except HTTPError:
        return  # it answers
    except OSError as error:
        raise DataError(
            f"{what}, and {constants.ENDPOINT} cannot be reached: {line_of(error)}; {remedy}"
            "connect this machine, or set HF_HUB_OFFLINE=1 to use what was downloaded before"
        ) from None
