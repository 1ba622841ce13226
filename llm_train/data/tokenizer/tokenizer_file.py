"""A ``tokenizer.json`` that exists already, and how any is opened.

Two traps of a file from elsewhere are taken out on loading: it may truncate or pad what it encodes,
and it turns text that merely spells a special token into that token. A corpus that discusses
``<|endoftext|>`` must not end in the middle of a sentence.

How many bytes of text a token stands for is found by decoding with the tokenizer itself. Bits per
byte divide by the bytes of text that the scored tokens decode to, so the lengths of single tokens
must add up to that of a document. Three kinds of token tell their length: a byte-level token has a
character for each byte, a byte that SentencePiece falls back to is one byte, and of all others we
see how much longer a text gets by them.

Many decoders treat the first token, or the last, in a way of their own: SentencePiece's and BERT's
drop the space before the first word. Lengths are therefore those inside a document, and the token
after each document, which stands for no text, takes the difference back: its length is -1 then.
A held-out set is counted to within that one byte, since nothing follows its last boundary.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from llm_train.data.base import END_OF_TEXT, Ids, Texts, Tokenizer
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


_SHOWN = 20  # characters on either side of the first difference


def changed_texts(tokenizer: tokenizers.Tokenizer, sample: Iterable[str]) -> str:
    """How many texts do not come back as they were, with an example; "" where all do."""
    texts = list(sample)
    encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    decoded = tokenizer.decode_batch([encoding.ids for encoding in encodings])
    changed = [pair for pair in zip(texts, decoded, strict=True) if pair[0] != pair[1]]
    if not changed:
        return ""
    before, after = changed[0]
    pairs = enumerate(zip(before, after, strict=False))
    place = next((n for n, (one, other) in pairs if one != other), min(len(before), len(after)))
    shown = [text[max(0, place - _SHOWN) : place + _SHOWN] for text in (before, after)]
    return (
        f"the tokenizer changes {len(changed)} of {len(texts)} documents of a sample: "
        f"{shown[0]!r} comes back as {shown[1]!r}; bits per byte count the bytes that come back, "
        "and are not comparable with those of a tokenizer that keeps the text"
    )


# Decoders that treat each token by itself, but for the ends of the text.
_TOKEN_BY_TOKEN = {"BPEDecoder", "ByteFallback", "Fuse", "Metaspace", "Replace", "Strip"}
_TOKEN_BY_TOKEN |= {"WordPiece", "none"}
_BYTE = re.compile("<0x[0-9A-F]{2}>")


def byte_lengths(tokenizer: tokenizers.Tokenizer, boundary: str = "") -> Ids:
    """(vocabulary,) bytes of text each id decodes to; 0 for special tokens and unused ids.

    Args:
        tokenizer: any whose decoder treats tokens one by one.
        boundary: the token after each document; "" for none.

    Raises:
        ConfigError: the length of a token depends on its neighbours, or the ends of a document
            have lengths of their own and no token marks them.
    """
    plain = json.loads(tokenizer.to_str())
    kinds = set(_decoders(plain["decoder"]))
    added = plain["added_tokens"]
    lengths = np.zeros(vocabulary_size(tokenizer), dtype=np.int32)
    own = tokenizer.get_vocab(with_added_tokens=False)
    for token in added:
        own.pop(token["content"], None)
        lengths[token["id"]] = 0 if token["special"] else len(token["content"].encode())
    if kinds == {"ByteLevel"}:
        lengths[list(own.values())] = [len(token) for token in own]
        return lengths
    if refused := kinds - _TOKEN_BY_TOKEN:
        raise ConfigError(
            f"a tokenizer with the decoder {' + '.join(sorted(refused))} is not supported: the "
            "bytes of its tokens depend on their neighbours, so that bits per byte are unknown; "
            "use one with another decoder, or train one (TrainBPE, TrainUnigram)"
        )
    bytes_fall_back = "ByteFallback" in kinds
    single = {n: 1 for token, n in own.items() if bytes_fall_back and _BYTE.fullmatch(token)}
    others = sorted(set(own.values()) - set(single))
    lengths[list(single)] = 1
    if not others:
        return lengths
    anchor = others[0]
    around = _bytes(tokenizer, [[anchor, anchor]])[0]
    inside = _bytes(tokenizer, [[anchor, number, anchor] for number in others])
    lengths[others] = np.array(inside) - around
    if difference := _at_the_ends(tokenizer, lengths, others):
        if not boundary:
            raise ConfigError(
                f"end_of_text='' with this tokenizer leaves {abs(difference)} byte a document "
                "uncounted (it drops the space before the first word); name a token to put "
                "between documents, so that bits per byte can be told"
            )
        lengths[token_id(tokenizer, boundary)] += difference
    return lengths


def _at_the_ends(tokenizer: tokenizers.Tokenizer, lengths: Ids, numbers: list[int]) -> int:
    """By how many bytes a document is longer than the sum of its tokens; 0 or below."""
    for number in numbers:
        word = tokenizer.decode([number]).strip()
        if word.isalnum():
            ids = tokenizer.encode(word, add_special_tokens=False).ids
            return _bytes(tokenizer, [ids])[0] - int(lengths[ids].sum())
    return 0


def _bytes(tokenizer: tokenizers.Tokenizer, rows: list[list[int]]) -> list[int]:
    return [len(text.encode()) for text in tokenizer.decode_batch(rows)]


def _decoders(decoder: dict[str, Any] | None) -> Iterator[str]:
    if decoder is None:
        yield "none"
    elif decoder["type"] == "Sequence":
        for inner in decoder["decoders"]:
            yield from _decoders(inner)
    else:
        yield str(decoder["type"])
