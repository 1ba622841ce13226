"""A tokenizer that exists already."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import tokenizers

from llm_train.data.base import END_OF_TEXT, Texts, Tokenizer
from llm_train.data.tokenizer.loading import byte_lengths, load_tokenizer, token_id
from llm_train.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True)
class TokenizerFile(Tokenizer):
    """Takes a byte-level ``tokenizer.json`` as it is and copies it beside the tokens.

    Attributes:
        path: the file, or a directory that holds it.
        end_of_text: the token appended to each document; "" appends none.
    """

    path: str
    end_of_text: str = END_OF_TEXT

    def __post_init__(self) -> None:
        if not self.path:
            raise ConfigError("path='' names no tokenizer.json; set path of TokenizerFile")

    @property
    def boundary(self) -> str:
        """As configured."""
        return self.end_of_text

    def provenance(self) -> Mapping[str, str | int]:
        """The file's hash."""
        return {"tokenizer_file": hashlib.sha256(self._file().read_bytes()).hexdigest()}

    def build(self, texts: Texts) -> tokenizers.Tokenizer:
        """Opens the file and refuses what cannot be used before any text is read."""
        tokenizer = load_tokenizer(self._file())
        byte_lengths(tokenizer)
        if self.end_of_text:
            token_id(tokenizer, self.end_of_text)
        return tokenizer

    def _file(self) -> Path:
        path = Path(self.path)
        file = path / "tokenizer.json" if path.is_dir() else path
        if not file.is_file():
            raise DataError(f"path={self.path}: there is no tokenizer.json; correct the path")
        return file
