"""A ``tokenizer.json`` that exists already, and how any is opened.

Two traps of a file from elsewhere are taken out on loading: it may truncate or pad what it encodes,
and it turns text that merely spells a special token into that token. A corpus that discusses
``<|endoftext|>`` must not end in the middle of a sentence.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import tokenizers

from llm_train.data.base import END_OF_TEXT, Texts, Tokenizer
from llm_train.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True)
class Existing(Tokenizer):
    """Base of tokenizers that are read from a file."""

    path: str
    end_of_text: str = END_OF_TEXT

    def __post_init__(self) -> None:
        if not self.path:
            raise ConfigError(f"path='' names no file; set path of {type(self).__name__}")

    @property
    def boundary(self) -> str:
        """As configured."""
        return self.end_of_text


@dataclass(frozen=True, kw_only=True)
class TokenizerFile(Existing):
    """Takes a ``tokenizer.json`` as it is and copies it alongside the tokens.

    Attributes:
        path: the file, or a directory that holds it.
        end_of_text: the token appended to each document; "" appends none.
    """

    def provenance(self) -> Mapping[str, str | int]:
        """The file's hash."""
        content = tokenizer_file(self.path).read_bytes()
        return {"tokenizer_file": hashlib.sha256(content).hexdigest()}

    def build(self, texts: Texts) -> tokenizers.Tokenizer:
        """Opens the file; the recipe asks for byte lengths and boundary before it reads text."""
        if moved := moved_token(tokenizer_file(self.path)):
            raise DataError(moved)
        return load_tokenizer(self.path)


def moved_token(file: Path) -> str:
    """What is wrong with a file whose ids tokenizers does not keep; "" where it keeps them."""
    tokenizer = load_tokenizer(file)
    for added in json.loads(file.read_text("utf-8")).get("added_tokens", ()):
        # The library numbers added tokens on from the vocabulary, whatever the file says.
        if (found := tokenizer.token_to_id(added["content"])) != added["id"]:
            return (
                f"{file} gives the token {added['content']!r} the id {added['id']}, and tokenizers "
                f"gives it {found}: ids of added tokens have to follow the vocabulary without a "
                "gap; fill the gap with added tokens that are not used"
            )
    return ""


def load_tokenizer(path: str | Path) -> tokenizers.Tokenizer:
    """Opens a tokenizer; special tokens in the text it encodes are ordinary text.

    Args:
        path: a ``tokenizer.json``, or a directory that holds one.

    Raises:
        DataError: no such file, or not a tokenizer.
    """
    file = tokenizer_file(path)
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise DataError(f"{file} is not a tokenizer that tokenizers can read: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def tokenizer_file(path: str | Path) -> Path:
    """The ``tokenizer.json`` that ``path`` is, or holds.

    Raises:
        DataError: there is none.
    """
    file = Path(path) / "tokenizer.json" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise DataError(f"{path}: there is no tokenizer.json; correct the path")
    return file


def vocabulary_size(tokenizer: tokenizers.Tokenizer) -> int:
    """One more than the largest id; a vocabulary may have gaps."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def token_id(tokenizer: tokenizers.Tokenizer, token: str) -> int:
    """The id of a token that must exist."""
    found = tokenizer.token_to_id(token)
    if found is None:
        raise ConfigError(
            f"end_of_text={token!r} is not a token of this tokenizer; name one, or '' for none"
        )
    return int(found)


def encoded(tokenizer: tokenizers.Tokenizer, text: str) -> list[int]:
    """As training saw text: without what a template would put around it.

    Raises:
        ConfigError: the tokenizer lacks a character.
    """
    try:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)
    except Exception as error:  # the library raises a bare one
        raise ConfigError(
            f"{text[:60]!r} cannot be encoded by this network's tokenizer ({error}); use "
            "characters that its corpus had"
        ) from None
