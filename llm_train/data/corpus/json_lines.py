"""JSON in files."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import field as new
from functools import cached_property

from llm_train.data.corpus.files import NamedFiles
from llm_train.data.corpus.formats.base import Format
from llm_train.data.corpus.formats.json_values import JSONValues
from llm_train.data.corpus.opening import Content
from llm_train.data.corpus.rows import RowText


@dataclass(frozen=True, kw_only=True)
class JSONLines(NamedFiles):
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

    field: str = "text"
    where: dict[str, list[str]] = new(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._format  # noqa: B018 - which checks the field

    @cached_property
    def _format(self) -> JSONValues:
        return JSONValues(rows=RowText(field=self.field, where=self.where))

    def format_of(self, content: Content) -> Format:
        """JSON, whatever the name of the file."""
        content.must_be_text("JSONLines")
        return self._format
