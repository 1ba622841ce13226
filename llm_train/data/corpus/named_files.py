"""The corpora of files: text, JSON, or whatever each file is."""

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Literal

from llm_train.data.corpus.files import NamedFiles
from llm_train.data.corpus.formats.base import Format
from llm_train.data.corpus.formats.columns import Columns
from llm_train.data.corpus.formats.json_values import JSONValues
from llm_train.data.corpus.formats.text import Delimited, PlainText
from llm_train.data.corpus.opening import MARKS, Unpacked
from llm_train.data.corpus.rows import RowText
from llm_train.data.recipe import ADDED_LATER
from llm_train.errors import check_choices

_FORMATS: dict[str, type[Format]] = {
    "text": PlainText,
    "json": JSONValues,
    "csv": Delimited,
    "parquet": Columns,
    "arrow": Columns,
}
_SUFFIXES = {
    **dict.fromkeys((".jsonl", ".json", ".ndjson", ".jsonlines"), "json"),
    **dict.fromkeys((".csv", ".tsv", ".tab", ".psv"), "csv"),
}


@dataclass(frozen=True, kw_only=True)
class TextFiles(NamedFiles):
    r"""Text files, plain, compressed or in archives.

    A document's key is the file's path below the directory or the fixed part of the pattern that
    named it, with ``#number`` where the file is cut.

    Attributes:
        paths: files, directories, glob patterns or URLs.
        encoding: of the text; ``auto`` guesses it for each file.
        members: pattern for the members of archives.
        separator: the text between documents where a file holds many (``"\n\n\n"``,
            ``"<|endoftext|>"``); it belongs to none of them. Such files are read in pieces and may
            be larger than memory. "" means that a file is one document. A line end may be written
            as ``\n``, as it comes from a shell.
    """

    separator: str = ""

    def format_of(self, content: Unpacked) -> Format:
        """Text, whatever the name of the file."""
        return PlainText(separator=self.separator)


@dataclass(frozen=True, kw_only=True)
class RowFiles(NamedFiles):
    """Documents in fields of rows.

    Attributes:
        field: that holds the text.
        where: field to the values that it may have.
    """

    field: str = "text"
    where: dict[str, list[str]] = dataclasses.field(default_factory=dict, metadata=ADDED_LATER)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.rows  # noqa: B018 - which checks the field

    @cached_property
    def rows(self) -> RowText:
        """How a row becomes text."""
        return RowText(field=self.field, where=self.where)


@dataclass(frozen=True, kw_only=True)
class JSONLines(RowFiles):
    """Files of JSON objects, one a line or in one array; plain, compressed or in archives.

    A document's key is its file's path below what named it, a colon and the line number.

    Attributes:
        paths: files, directories, glob patterns or URLs.
        encoding: of the text; ``auto`` guesses it for each file.
        members: pattern for the members of archives.
        field: the member that holds the text: a name, a path (``data.text``) or a template of
            several (``"{title} {body}"``).
        where: member to the values that it may have, as in ``{language: [en, de]}``; other objects
            are skipped.
    """

    def format_of(self, content: Unpacked) -> Format:
        """JSON, whatever the name of the file."""
        return JSONValues(rows=self.rows)


@dataclass(frozen=True, kw_only=True)
class Files(RowFiles):
    r"""Text, JSON, CSV, TSV, Parquet and Arrow, plain, compressed or in zip and tar archives.

    Keys are FILE, FILE#NUMBER (cut by a separator), FILE:LINE (from 1; JSON lines) and FILE:ROW
    (from 0), where the file of a member is ARCHIVE!MEMBER.

    Attributes:
        paths: files, directories, glob patterns or URLs.
        encoding: of text; ``auto`` guesses it for each file.
        members: pattern for the members of archives, as in ``"*.txt"``.
        format: auto is what each file's name and first bytes say.
        field: the column or member that holds the text: a name, a path (``data.text``) or a
            template of several (``"{title}\n\n{body}"``); of no effect on plain text.
        where: column to the values that it may have, as in ``{language: [en, de]}``; other rows are
            skipped.
        separator: the text between documents of plain text, as ``TextFiles`` has it.
        delimiter: between the fields of CSV; "" is a comma, tab, semicolon or bar, whichever the
            header has most often.
    """

    format: Literal["auto", "text", "json", "csv", "parquet", "arrow"] = "auto"
    separator: str = ""
    delimiter: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self)

    def format_of(self, content: Unpacked) -> Format | None:
        """The format that is configured, or that of the name and the first bytes."""
        name: str = self.format
        if name == "auto":
            suffix = PurePosixPath(content.name).suffix.lower()
            name = "arrow" if content.kind else _SUFFIXES.get(suffix, "text")
            if name == "text" and self._is_binary(content):
                return None
        options = {"separator": self.separator, "delimiter": self.delimiter}
        return _FORMATS[name](rows=self.rows, **options)

    def _is_binary(self, content: Unpacked) -> bool:
        """Whether NUL bytes show that it is a picture, sound or program."""
        may_have = self.encoding not in ("utf-8", "auto") or content.head(4).startswith((*MARKS,))
        return not may_have and b"\0" in content.head(1024)
