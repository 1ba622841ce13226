"""Tokenizers over bytes that are learnt from the training text: pairs of bytes, or unigram pieces.

The unigram trainer of ``tokenizers`` adds up probabilities in the order of a hash table, so that
the same text gives other scores each time. SentencePiece's gives the same pieces and scores when it
gets the same words in the same order and one thread; it is handed GPT-2's words with their counts.
"""

from __future__ import annotations

import io
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from llm_train.context import Context
from llm_train.data.base import END_OF_TEXT, Texts, Tokenizer
from llm_train.data.encoding import Cutter
from llm_train.data.token_source import too_many_ids
from llm_train.data.tokenizer.alphabets import byte_characters
from llm_train.errors import DataError, check_at_least

_SMALLEST = 257  # every byte and the boundary token


@dataclass(frozen=True, kw_only=True)
class Learnt(Tokenizer):
    """Base of tokenizers over bytes whose vocabulary has a size that is asked for."""

    vocab_size: int = 4096
    sample_bytes: int = 0

    def __post_init__(self) -> None:
        check_at_least(self, _SMALLEST, "vocab_size", hint=": 256 bytes and one end-of-text token")
        check_at_least(self, 0, "sample_bytes")

    def problems(self, context: Context) -> Iterator[str]:
        """A vocabulary that will be larger than the network's, where no tokens say how large."""
        if not context.prepared and self.vocab_size > context.token_ids:
            key = "data.recipe.init_args.tokenizer"
            yield too_many_ids(key, self.vocab_size, context.token_ids)


def first_bytes(texts: Iterable[str], limit: int) -> Iterator[str]:
    """Whole texts until ``limit`` bytes have been given (0: no limit)."""
    given = 0
    for text in texts:
        yield text
        given += len(text.encode()) if limit else 0
        if limit and given >= limit:
            return


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


_LONGEST_WORD = 256  # characters that are counted as one word; a piece has 16 at most


@dataclass(frozen=True, kw_only=True)
class TrainUnigram(Learnt):
    """Pieces whose product of probabilities is largest, over bytes: any text decodes to itself.

    Attributes:
        vocab_size: ids, the 256 bytes and ``<|endoftext|>`` (id 0) included; a small corpus may
            give fewer.
        sample_bytes: learn from the first so many bytes of training text; 0 means all of it.
    """

    sample_bytes: int = 100_000_000

    def provenance(self) -> Mapping[str, str | int]:
        """The text, which the corpus answers for, and the library that learns."""
        return {"sentencepiece": version("sentencepiece")}

    def build(self, texts: Texts) -> tokenizers.Tokenizer:
        """Counts the words and learns the pieces."""
        splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
        # Every byte once, so that each gets a piece.
        counts = Counter(byte_characters())
        for text in first_bytes(texts.train(), self.sample_bytes):
            counts.update(word[:_LONGEST_WORD] for word, _ in splitter.pre_tokenize_str(text))
        if counts.total() == 256:
            raise DataError("the corpus has no training text; check its paths and the split")
        pieces = [(END_OF_TEXT, 0.0), *_learn(counts, self.vocab_size)]
        tokenizer = tokenizers.Tokenizer(models.Unigram(pieces))
        tokenizer.pre_tokenizer = splitter
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens([END_OF_TEXT])
        return tokenizer


def _learn(counts: Counter[str], vocab_size: int) -> list[tuple[str, float]]:
    import sentencepiece

    model = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        words = Path(folder) / "words.tsv"
        rows = (f"{word}\t{count}\n" for word, count in sorted(counts.items()))
        words.write_text("".join(rows), "utf-8")
        sentencepiece.SentencePieceTrainer.train(
            input=str(words),
            input_format="tsv",
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,  # its unknown piece is one of them, in the place of our boundary
            hard_vocab_limit=False,
            character_coverage=1.0,
            num_threads=1,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            split_by_whitespace=False,
            split_by_unicode_script=False,  # the characters stand for bytes
            split_by_number=False,
            bos_id=-1,
            eos_id=-1,
            minloglevel=2,
        )
    learnt = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    numbers = range(1, learnt.get_piece_size())
    return [(learnt.id_to_piece(number), learnt.get_score(number)) for number in numbers]
