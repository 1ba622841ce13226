"""The recipe: read, split, learn a tokenizer, encode, write.

The text is read once for each thing that must be known before the next: the tokenizer from a first
pass, the ids from a second. Nothing is kept between passes, so a corpus may be larger than memory.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from llm_train.context import Part
from llm_train.data.base import (
    NO_TOKEN,
    SPLITS,
    Corpus,
    Document,
    Recipe,
    Skipped,
    Split,
    Texts,
    Tokenizer,
)
from llm_train.data.encoding import encode_all
from llm_train.data.recipe import NO_EFFECT_ON_TOKENS, recipe_dict
from llm_train.data.references import CompressedSize
from llm_train.data.shards import TOKEN_BYTES, TOKENIZER, ShardWriter, describe_file, dtype_for
from llm_train.data.token_manifest import VERSION, Manifest, StoredSplit, sums_name
from llm_train.data.tokenizer.byte_lengths import byte_lengths
from llm_train.data.tokenizer.tokenizer_file import load_tokenizer, token_id
from llm_train.errors import DataError, check_at_least

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Tokenize(Recipe):
    """Turns a corpus into token shards.

    Attributes:
        corpus: the text.
        tokenizer: how text becomes ids.
        split: what is held out.
        workers: encoding threads; 0 means one per available core. Does not change the tokens.
        shard_tokens: tokens per file.
    """

    corpus: Corpus
    tokenizer: Tokenizer
    split: Split
    workers: int = field(default=0, metadata=NO_EFFECT_ON_TOKENS)
    shard_tokens: int = 100_000_000

    def __post_init__(self) -> None:
        check_at_least(self, 0, "workers", hint=" (0: one per core)")
        check_at_least(self, 1, "shard_tokens")

    def parts(self) -> Iterator[Part]:
        """Corpus, tokenizer and split."""
        yield from (self.corpus, self.tokenizer, self.split)

    @property
    def boundary(self) -> str:
        """The tokenizer's."""
        return self.tokenizer.boundary

    def provenance(self) -> dict[str, str | int]:
        """Of corpus and tokenizer."""
        return {**self.corpus.provenance(), **self.tokenizer.provenance()}

    def write(self, directory: Path, progress: bool) -> None:
        """Runs the recipe.

        Raises:
            DataError: no training text, or nothing held out although the split asks for it.
        """
        provenance = self.provenance()
        texts = Texts(train=self._train_texts, everything=self._texts)
        self.tokenizer.build(texts).save(str(directory / TOKENIZER))
        # Encode with what will be loaded later, not with the object that was trained.
        tokenizer = load_tokenizer(directory / TOKENIZER)
        boundary = self.tokenizer.boundary
        lengths = byte_lengths(tokenizer, boundary)
        np.save(directory / TOKEN_BYTES, lengths)
        end_of_text = token_id(tokenizer, boundary) if boundary else NO_TOKEN
        at_the_ends = int(lengths[end_of_text]) if boundary else 0
        skipped, compressed = Counter[str](), CompressedSize()
        size = provenance.get("bytes")
        total = size if isinstance(size, int) else None
        bar = tqdm(total=total, unit="B", unit_scale=True, desc="tokenizing", disable=not progress)
        with bar, ExitStack() as stack:
            writers = {
                name: stack.enter_context(
                    ShardWriter(directory, name, lengths.size, self.shard_tokens)
                )
                for name in SPLITS
            }
            pieces = self.split.divide(lambda: self._documents(skipped))
            for piece, ids in encode_all(pieces, tokenizer, self.workers):
                text, decoded = piece.text.encode(), int(lengths[ids].sum(dtype=np.int64))
                decoded += at_the_ends
                if piece.ends and boundary:
                    ids = np.append(ids, np.int32(end_of_text))
                counts = {"documents": 1, "text_bytes": len(text), "decoded_bytes": decoded}
                writers[piece.split].add(ids, **counts)
                if piece.split == "held_out":
                    compressed.add(text)
                bar.update(len(text))
        splits = {name: writer.stored() for name, writer in writers.items()}
        self._check(splits)
        Manifest(
            version=VERSION,
            dtype=dtype_for(lengths.size),
            vocab_size=lengths.size,
            end_of_text=end_of_text,
            splits=splits,
            others=[
                describe_file(directory / name)
                for name in (TOKENIZER, TOKEN_BYTES, *map(sums_name, SPLITS))
            ],
            recipe=recipe_dict(self),
            provenance=provenance,
            skipped=dict(sorted(skipped.items())),
            references=compressed.bits_per_byte(),
        ).save(directory)

    def _documents(self, skipped: Counter[str]) -> Iterator[Document]:
        """A pass over the corpus, which counts what it leaves out by reason."""
        skipped.clear()
        for item in self.corpus.read():
            if isinstance(item, Skipped):
                skipped[item.reason] += 1
            else:
                yield item

    def _texts(self) -> Iterator[str]:
        return (document.text for document in self._documents(Counter()))

    def _train_texts(self) -> Iterator[str]:
        pieces = self.split.divide(lambda: self._documents(Counter()))
        return (piece.text for piece in pieces if piece.split == "train")

    def _check(self, splits: Mapping[str, StoredSplit]) -> None:
        if not splits["train"].tokens:
            raise DataError("the corpus has no training text; check its paths and the split")
        if self.split.holds_out and not splits["held_out"].tokens:
            raise DataError(
                "the split holds nothing out; raise split.fraction, or set it to 0 to mean it"
            )
        for name, split in splits.items():
            if split.text_bytes != split.decoded_bytes:
                _log.warning(
                    "%s: the tokens of %d bytes of text decode to %d bytes; the tokenizer changes "
                    "its input, and bits per byte are not comparable with other tokenizers'",
                    name,
                    split.text_bytes,
                    split.decoded_bytes,
                )
