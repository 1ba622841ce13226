"""Byte-level unigram pieces learnt from the training text by SentencePiece's trainer.

The trainer of ``tokenizers`` adds up probabilities in the order of a hash table, so that the same
text gives other scores each time. SentencePiece's gives the same pieces and scores when it gets the
same words in the same order and one thread; it is handed GPT-2's words with their counts.
"""

import io
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from llm_train.data.base import END_OF_TEXT, Texts
from llm_train.data.tokenizer.learnt import Learnt, first_bytes
from llm_train.data.tokenizer.raw_bytes import byte_characters
from llm_train.errors import DataError

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
