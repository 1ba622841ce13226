"""A ``tokenizer.json`` that exists already: opening it, and what its tokens weigh in bytes.

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
from typing import Any

import numpy as np
import tokenizers

from llm_train.data.base import END_OF_TEXT, Ids, Texts, Tokenizer
from llm_train.errors import ConfigError, DataError


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
        content = tokenizer_file(self.path).read_bytes()
        return {"tokenizer_file": hashlib.sha256(content).hexdigest()}

    def build(self, texts: Texts) -> tokenizers.Tokenizer:
        """Opens the file; the recipe asks for byte lengths and boundary before it reads text."""
        return load_tokenizer(self.path)


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


def byte_lengths(tokenizer: tokenizers.Tokenizer) -> Ids:
    """(vocabulary,) bytes of text each id decodes to; 0 for special tokens and unused ids.

    Known for two kinds of tokenizer: byte-level ones, which write each byte as one character, and
    those that only join their tokens. Others (SentencePiece's byte fallback, WordPiece) add or drop
    characters depending on the neighbours, and are refused.

    Raises:
        ConfigError: the length of a token depends on its neighbours.
    """
    plain = json.loads(tokenizer.to_str())
    kinds = _decoders(plain["decoder"])
    if kinds not in (["ByteLevel"], ["Fuse"]):
        raise ConfigError(
            f"a tokenizer with the decoder {' + '.join(kinds) or 'none'} is not supported: bits "
            "per byte need a byte-level tokenizer (decoder ByteLevel); train one with TrainBPE"
        )
    lengths = np.zeros(vocabulary_size(tokenizer), dtype=np.int32)
    for token, number in tokenizer.get_vocab(with_added_tokens=False).items():
        lengths[number] = len(token) if kinds == ["ByteLevel"] else len(token.encode())
    for added in plain["added_tokens"]:
        lengths[added["id"]] = 0 if added["special"] else len(added["content"].encode())
    return lengths


def _decoders(decoder: dict[str, Any] | None) -> list[str]:
    if decoder is None:
        return []
    if decoder["type"] == "Sequence":
        return [kind for inner in decoder["decoders"] for kind in _decoders(inner)]
    return [decoder["type"]]
