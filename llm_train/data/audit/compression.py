"""Several tokenizers on the same text: how few tokens they need, and whether they keep it."""

import tempfile
import time
from collections.abc import Sequence
from operator import ne
from pathlib import Path

import tokenizers

from llm_train.data.audit.prepared_folder import PreparedFolder
from llm_train.data.base import Texts
from llm_train.data.token_manifest import FILE_NAME, Manifest
from llm_train.data.tokenizer.encoders import choose_encoder
from llm_train.data.tokenizer.learnt import first_bytes
from llm_train.data.tokenizer.sentence_piece import SentencePieceFile
from llm_train.data.tokenizer.tokenizer_file import (
    load_tokenizer,
    moved_token,
    tokenizer_file,
    vocabulary_size,
)

_CHECKED_BYTES = 200_000  # on which a library is tried


def sample_of(folder: PreparedFolder, size: int) -> list[str]:
    """The first documents of the training text, ``size`` bytes of it or a little more."""
    documents = folder.documents(next(iter(folder.manifest.splits)))
    texts = (folder.tokenizer.decode(ids.tolist()) for ids in documents)
    return list(first_bytes(texts, size))


def table(paths: Sequence[str], texts: Sequence[str]) -> list[list[str]]:
    """A row for each tokenizer under a row of titles, the one with the fewest tokens first."""
    size = sum(len(text.encode()) for text in texts)
    rows = []
    for path in paths:
        with tempfile.TemporaryDirectory() as folder:
            tokenizer = opened(path)
            tokenizer.save(f"{folder}/tokenizer.json")
            encoder = choose_encoder(Path(folder), list(first_bytes(texts, _CHECKED_BYTES)))
        started = time.process_time()
        encoded = encoder.encode(list(texts))
        seconds = max(time.process_time() - started, 1e-9)
        tokens = sum(ids.size for ids in encoded)
        decoded = tokenizer.decode_batch([ids.tolist() for ids in encoded])
        changed = sum(map(ne, texts, decoded))
        rows.append(
            [
                path,
                f"{vocabulary_size(tokenizer):,}",
                f"{tokens:,}",
                f"{size / max(1, tokens):.3f}",
                f"{tokens / seconds / 1e6:.2f}",
                encoder.name,
                f"no: {changed:,} of {len(texts):,} documents change" if changed else _doubt(path),
            ]
        )
    head = ["tokenizer", "ids", "tokens", "bytes/token", "M tokens/CPU-s", "library", "keeps text"]
    return [head, *sorted(rows, key=lambda row: int(row[2].replace(",", "")))]


def opened(path: str) -> tokenizers.Tokenizer:
    """A ``tokenizer.json``, a folder that holds one, or a model of SentencePiece."""
    if path.endswith(".model"):
        return SentencePieceFile(path=path).build(Texts(lambda: iter(()), lambda: iter(())))
    return load_tokenizer(path)


def _doubt(path: str) -> str:
    """Why a text that comes back does not mean that every text does; "yes" where it does."""
    if not path.endswith(".model") and moved_token(tokenizer_file(path)):
        return "no: tokenizers gives a token another id than the file, so prepare refuses it"
    if Path(path, FILE_NAME).is_file():
        splits = Manifest.load(Path(path)).splits.values()
        if any(split.text_bytes != split.decoded_bytes for split in splits):
            return "no: the corpus was longer or shorter"
        if load_tokenizer(path).normalizer is not None:
            return "unknown: it normalises text, and may have changed this one before"
    return "yes"
