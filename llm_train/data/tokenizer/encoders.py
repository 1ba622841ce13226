"""Which library encodes: the fastest whose ids are those of ``tokenizers`` on the text at hand.

``tokenizers`` defines what a ``tokenizer.json`` means, so its ids are the right ones. fastokens
reads the same file and is some 25 times faster on a core, but it is another program: it is used
only after its ids were compared on a sample of the corpus and on text that spells special tokens.

Measured on 10 MB of Python source with a vocabulary of 32,000, in million tokens per CPU-second:
tokenizers 0.37, tiktoken 2.3, fastokens 10 at first and 41 once it has seen the words. tiktoken
would need its own form of the vocabulary and is slower, so it has no place here.
"""

from __future__ import annotations

import importlib.util
import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llm_train.data.tokenizer.tokenizer_file import load_tokenizer, tokenizer_file

_log = logging.getLogger(__name__)

Rows = list[npt.NDArray[np.int32]]


class Encoder(ABC):
    """Text to ids. Text that spells a special token is text. Pickled as the path of its file.

    Attributes:
        name: library and version.
    """

    name: str

    def __init__(self, path: Path) -> None:
        self._path = path

    @abstractmethod
    def encode(self, texts: list[str]) -> Rows:
        """The ids of each text, without any that a template would add."""

    def __reduce__(self) -> tuple[type[Encoder], tuple[Path]]:
        return type(self), (self._path,)


class Tokenizers(Encoder):
    """The reference."""

    name = f"tokenizers {version('tokenizers')}"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._tokenizer = load_tokenizer(path)
        self.model = type(self._tokenizer.model).__name__  # BPE, Unigram, WordLevel or WordPiece

    def added_tokens(self) -> list[str]:
        """The tokens that are not of the model, special ones and others."""
        return [token.content for token in self._tokenizer.get_added_tokens_decoder().values()]

    def encode(self, texts: list[str]) -> Rows:
        """Without offsets, which nobody reads."""
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]


class Fastokens(Encoder):
    """The fast one."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        import fastokens

        self.name = f"fastokens {version('fastokens')}"
        self._tokenizer = fastokens.Tokenizer.from_file(str(tokenizer_file(path)))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def encode(self, texts: list[str]) -> Rows:
        """One array for the batch, cut into rows."""
        # ``encode`` would take text that spells a special token for the token.
        ids, offsets = self._tokenizer.encode_batch_flat(texts, split_special_tokens=True)
        joined, borders = np.frombuffer(ids, "<i4"), np.frombuffer(offsets, "<i8").tolist()
        return [joined[start:stop] for start, stop in pairwise(borders)]


def choose_encoder(path: Path, sample: Sequence[str]) -> Encoder:
    """The fastest library that gives the same ids as ``tokenizers``, and a line that says which.

    Args:
        path: a ``tokenizer.json``, or a directory that holds one.
        sample: a few hundred kilobytes of the text that will be encoded.
    """
    reference = Tokenizers(path)
    if reference.model != "BPE":
        reason = f"fastokens has no {reference.model}"
    elif importlib.util.find_spec("fastokens") is None:
        reason = "pip install fastokens encodes some 25 times faster"
    elif refused := _difference(path, reference, sample):
        reason = f"fastokens {refused}"
    else:
        fast = Fastokens(path)
        size = sum(map(len, sample))
        _log.info("encoding with %s, equal to tokenizers on %d characters", fast.name, size)
        return fast
    _log.info("encoding with %s: %s", reference.name, reason)
    return reference


def _difference(path: Path, reference: Tokenizers, sample: Sequence[str]) -> str:
    """Why fastokens cannot take the place of ``reference``; "" where it can."""
    texts = [*sample, *(f"a{token} {token}b" for token in reference.added_tokens()), ""]
    try:
        rows = Fastokens(path).encode(texts)
    except Exception as error:  # the library raises what it likes for what it does not support
        return f"cannot read this tokenizer or text ({str(error).partition(chr(10))[0]})"
    for text, expected, found in zip(texts, reference.encode(texts), rows, strict=True):
        if not np.array_equal(expected, found):
            return f"gives {found[:9].tolist()} for {text[:40]!r}, not {expected[:9].tolist()}"
    return ""
