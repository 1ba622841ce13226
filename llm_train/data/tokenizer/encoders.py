"""Which library encodes: the fastest whose ids are those of ``tokenizers`` on the text at hand.

``tokenizers`` defines what a ``tokenizer.json`` means, so its ids are the right ones. fastokens
reads the same file and is some 25 times faster on a core, but it is another program: it is used
only after its ids were compared on a sample of the corpus and on text that spells special tokens.

Measured on 10 MB of Python source with a vocabulary of 32,000, in million tokens per CPU-second:
tokenizers 0.37, tiktoken 2.3, fastokens 10 at first and 41 once it has seen the words. tiktoken
would need its own form of the vocabulary and is slower, so it has no place here.
"""

import importlib.util
import logging
from collections.abc import Callable, Sequence
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import tokenizers

from llm_train.data.tokenizer.tokenizer_file import load_tokenizer, tokenizer_file

_log = logging.getLogger(__name__)

Rows = list[npt.NDArray[np.int32]]


class Encoder(NamedTuple):
    """Text to ids. Text that spells a special token is text.

    Attributes:
        name: library and version.
        encode: the ids of each text, without any that a template would add.
    """

    name: str
    encode: Callable[[list[str]], Rows]


def _tokenizers(tokenizer: tokenizers.Tokenizer) -> Encoder:
    """The reference."""

    def encode(texts: list[str]) -> Rows:
        # Without offsets, which nobody reads.
        encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]

    return Encoder(f"tokenizers {version('tokenizers')}", encode)


def _fastokens(path: Path) -> Encoder:
    """The fast one."""
    import fastokens

    tokenizer = fastokens.Tokenizer.from_file(str(tokenizer_file(path)))
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def encode(texts: list[str]) -> Rows:
        # ``encode`` would take text that spells a special token for the token.
        ids, offsets = tokenizer.encode_batch_flat(texts, split_special_tokens=True)
        joined, borders = np.frombuffer(ids, "<i4"), np.frombuffer(offsets, "<i8").tolist()
        return [joined[start:stop] for start, stop in pairwise(borders)]

    return Encoder(f"fastokens {version('fastokens')}", encode)


def choose_encoder(path: Path, sample: Sequence[str]) -> Encoder:
    """The fastest library that gives the same ids as ``tokenizers``, and a line that says which.

    Args:
        path: a ``tokenizer.json``, or a directory that holds one.
        sample: a few hundred kilobytes of the text that will be encoded.
    """
    tokenizer = load_tokenizer(path)
    reference, model = _tokenizers(tokenizer), type(tokenizer.model).__name__
    if model != "BPE":
        reason = f"fastokens has no {model}"
    elif importlib.util.find_spec("fastokens") is None:
        reason = "pip install fastokens encodes some 25 times faster"
    elif refused := _difference(path, tokenizer, sample):
        reason = f"fastokens {refused}"
    else:
        fast = _fastokens(path)
        size = sum(map(len, sample))
        _log.info("encoding with %s, equal to tokenizers on %d characters", fast.name, size)
        return fast
    _log.info("encoding with %s: %s", reference.name, reason)
    return reference


def _difference(path: Path, tokenizer: tokenizers.Tokenizer, sample: Sequence[str]) -> str:
    """Why fastokens cannot take the place of ``tokenizer``; "" where it can."""
    added = (token.content for token in tokenizer.get_added_tokens_decoder().values())
    texts = [*sample, *(f"a{token} {token}b" for token in added), ""]
    try:
        rows = _fastokens(path).encode(texts)
    except Exception as error:  # the library raises what it likes for what it does not support
        return f"cannot read this tokenizer or text ({str(error).partition(chr(10))[0]})"
    for text, expected, found in zip(
        texts, _tokenizers(tokenizer).encode(texts), rows, strict=True
    ):
        if not np.array_equal(expected, found):
            return f"gives {found[:9].tolist()} for {text[:40]!r}, not {expected[:9].tolist()}"
    return ""
