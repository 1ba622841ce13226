"""A tokenizer that exists already."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import tokenizers

from llm_train.data.base import END_OF_TEXT, Texts, Tokenizer
from llm_train.data.tokenizer.loading import byte_lengths, load_tokenizer, token_id, tokenizer_file
from llm_train.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TokenizerFile(Tokenizer):
    """Takes a byte-level ``tokenizer.json`` as it is and copies it alongside the tokens.

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
        return {
            "tokenizer_file": hashlib.sha256(tokenizer_file(self.path).read_bytes()).hexdigest()
        }

    def build(self, texts: Texts) -> tokenizers.Tokenizer:
        """Opens the file and refuses what cannot be used before any text is read."""
        tokenizer = load_tokenizer(self.path)
        byte_lengths(tokenizer)
        if self.end_of_text:
            token_id(tokenizer, self.end_of_text)
        return tokenizer
