"""How many bytes of text each token stands for, found by decoding with the tokenizer itself.

Bits per byte divide by the bytes of text that the scored tokens decode to, so the lengths of single
tokens must add up to that of a document. Three kinds of token tell their length: a byte-level token
has a character for each byte, a byte that SentencePiece falls back to is one byte, and of all
others we see how much longer a text gets by them.

Many decoders treat the first token, or the last, in a way of their own: SentencePiece's and BERT's
drop the space before the first word. Lengths are therefore those inside a document, and the token
after each document, which stands for no text, takes the difference back: its length is -1 then.
A held-out set is counted to within that one byte, since nothing follows its last boundary.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import tokenizers

from llm_train.data.base import Ids
from llm_train.data.tokenizer.tokenizer_file import token_id, vocabulary_size
from llm_train.errors import ConfigError

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
