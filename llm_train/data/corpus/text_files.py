"""Plain text in files."""

from __future__ import annotations

from dataclasses import dataclass

from llm_train.data.corpus.files import NamedFiles
from llm_train.data.corpus.formats.base import Format
from llm_train.data.corpus.formats.text import PlainText
from llm_train.data.corpus.opening import Content


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

    def format_of(self, content: Content) -> Format:
        """Text, whatever the name of the file."""
        content.must_be_text("TextFiles")
        return PlainText(separator=self.separator)
