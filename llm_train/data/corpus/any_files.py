"""Files of any format that is known here, by their names and first bytes."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import field as new
from functools import cached_property
from pathlib import PurePosixPath
from typing import Literal

from llm_train.data.base import Skipped
from llm_train.data.corpus.encodings import MARKS
from llm_train.data.corpus.files import NamedFiles
from llm_train.data.corpus.formats.base import Format
from llm_train.data.corpus.formats.columns import Arrow, Parquet
from llm_train.data.corpus.formats.json_values import JSONValues
from llm_train.data.corpus.formats.table import Table
from llm_train.data.corpus.formats.text import PlainText
from llm_train.data.corpus.opening import TABLES, Content
from llm_train.data.corpus.rows import RowText
from llm_train.errors import DataError, check_choices

FormatName = Literal["auto", "text", "json", "csv", "parquet", "arrow"]
_SUFFIXES: dict[str, FormatName] = {
    **dict.fromkeys((".jsonl", ".json", ".ndjson", ".jsonlines"), "json"),
    **dict.fromkeys((".csv", ".tsv", ".tab", ".psv"), "csv"),
}


@dataclass(frozen=True, kw_only=True)
class Files(NamedFiles):
    r"""Text, JSON, CSV, TSV, Parquet and Arrow, plain, compressed or in zip and tar archives.

    Keys are FILE, FILE#NUMBER (cut by a separator), FILE:LINE (from 1; JSON lines) and FILE:ROW
    (from 0), where the file of a member is ARCHIVE!MEMBER.

    Attributes:
        paths: files, directories, glob patterns or URLs.
        encoding: of text; ``auto`` guesses it for each file.
        members: pattern for the members of archives, as in ``"*.txt"``.
        format: auto, text, json, csv, parquet or arrow; auto is what each file's name and first
            bytes say.
        field: the column or member that holds the text: a name, a path (``data.text``) or a
            template of several (``"{title}\n\n{body}"``); of no effect on plain text.
        where: column to the values that it may have, as in ``{language: [en, de]}``; other rows are
            skipped.
        separator: the text between documents of plain text, as ``TextFiles`` has it.
        delimiter: between the fields of CSV; "" is a comma, tab, semicolon or bar, whichever the
            header has most often.
    """

    format: FormatName = "auto"
    field: str = "text"
    where: dict[str, list[str]] = new(default_factory=dict)
    separator: str = ""
    delimiter: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self)
        self._formats  # noqa: B018 - which checks the field

    @cached_property
    def _formats(self) -> dict[str, Format]:
        rows = RowText(field=self.field, where=self.where)
        return {
            "text": PlainText(separator=self.separator),
            "json": JSONValues(rows=rows),
            "csv": Table(rows=rows, delimiter=self.delimiter),
            "parquet": Parquet(rows=rows),
            "arrow": Arrow(rows=rows),
        }

    def format_of(self, content: Content) -> Format | Skipped:
        """The format that is configured, or that of the name and the first bytes."""
        if self.format != "auto":
            if self.format.capitalize() in TABLES:
                if content.kind != self.format.capitalize():
                    raise DataError(f"{content.path} is not {self.format}; set format: auto")
            else:
                content.must_be_text(f"format: {self.format}")
            return self._formats[self.format]
        if content.kind in TABLES:
            return self._formats[content.kind.lower()]
        suffix = PurePosixPath(content.name).suffix.lower()
        if suffix in _SUFFIXES or not self._is_binary(content):
            return self._formats[_SUFFIXES.get(suffix, "text")]
        return Skipped(content.key, "neither text nor a known format", f"it ends in {suffix!r}")

    def _is_binary(self, content: Content) -> bool:
        """Whether NUL bytes show that it is a picture, sound or program."""
        may_have = self.encoding not in ("utf-8", "auto") or content.head(4).startswith((*MARKS,))
        return not may_have and b"\0" in content.head(1024)
