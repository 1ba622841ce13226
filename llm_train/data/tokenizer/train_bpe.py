"""Byte-level byte-pair encoding learnt from the training text."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from llm_train.data.base import END_OF_TEXT, Texts
from llm_train.data.encoding import Cutter
from llm_train.data.tokenizer.learnt import Learnt, first_bytes
from llm_train.errors import check_at_least

_SAMPLE_BYTES = 100_000_000
_RUN = re.compile(r"\S{256}|\s{256}")
_LONG_WORD = re.compile(r"[^\W\d_]{256}|\d{256}|(?:[^\w\s]|_){256}|\s{256}")


@dataclass(frozen=True, kw_only=True)
class TrainBPE(Learnt):
    """GPT-2's scheme: text is cut at words, words into bytes, and frequent pairs of pieces merge.

    Any text can be encoded and decodes to itself, byte for byte. Held-out text is not looked at, so
    that held-out bits per byte stay honest.

    Attributes:
        vocab_size: ids, the 256 bytes and ``<|endoftext|>`` (id 0) included; a small corpus may
            give fewer.
        min_frequency: a pair seen less often is not merged.
        sample_bytes: learn from the first so many bytes of training text; 0 means 100 MB, for which
            about a gigabyte of memory is needed.

    Runs of more than 256 letters, digits, marks or blanks are cut while it learns, since learning
    takes a time that is quadratic in the longest; what was learnt applies to them uncut.
    """

    min_frequency: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "min_frequency")

    def provenance(self) -> Mapping[str, str | int]:
        """The text, which the corpus answers for, and the library that counts."""
        return {"tokenizers": tokenizers.__version__}

    def build(self, texts: Texts) -> tokenizers.Tokenizer:
        """Learns the merges."""
        tokenizer = tokenizers.Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size,
            min_frequency=self.min_frequency,
            special_tokens=[END_OF_TEXT],
            # The library lists them in no fixed order, and ids must not depend on it.
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        sample = first_bytes(_bounded(texts.train()), self.sample_bytes or _SAMPLE_BYTES)
        tokenizer.train_from_iterator(sample, trainer)
        return tokenizer


def _bounded(texts: Iterable[str]) -> Iterator[str]:
    """The texts in pieces of bounded memory, whose words are the same up to a bounded length."""
    cutter = Cutter(cuts=True)
    for text in texts:
        for piece in cutter.pieces(text) or [text]:
            start = 0
            if _RUN.search(piece):  # which is fast, and rarely so
                for word in _LONG_WORD.finditer(piece):
                    yield piece[start : word.end()]
                    start = word.end()
            yield piece[start:]
