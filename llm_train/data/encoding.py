"""Text to token ids on all cores, in order, in bounded memory.

Threads, not processes: the tokenizers library releases the interpreter lock while it encodes, and
on 2 cores two threads took 1.45 s where two forked processes took 1.58 s and the library's own
thread pool 1.89 s (6 MB of Python source). Threads also share one tokenizer and start at once.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple
from unittest import mock

import numpy as np
import tokenizers

from llm_train.data.base import Ids, Piece, SplitName
from llm_train.errors import DataError

# An Encoding holds every token's string: some 100 times the text. One batch is a few MB of text.
_BATCH_CHARACTERS = 1 << 19
_BATCH_PIECES = 256
_LARGEST_PIECE = 1 << 28


class Encoded(NamedTuple):
    """One piece as ids.

    Attributes:
        split: where they belong.
        ids: (tokens,) with the boundary token, if any.
        text: of a held-out piece, as UTF-8; training text is not kept.
        text_bytes: length of the text.
        decoded_bytes: length of what the ids decode to.
    """

    split: SplitName
    ids: Ids
    text: bytes
    text_bytes: int
    decoded_bytes: int


def encode_all(
    pieces: Iterable[Piece],
    tokenizer: tokenizers.Tokenizer,
    lengths: Ids,
    end_of_text: int,
    workers: int,
) -> Iterator[Encoded]:
    """Encodes pieces and gives them back in their order.

    Args:
        pieces: read as needed, a few batches ahead.
        tokenizer: shared by the threads.
        lengths: bytes per id.
        end_of_text: id appended to a piece that ends a document; -1 appends none.
        workers: threads; 0 means one per available core.
    """

    def encode(batch: list[Piece]) -> list[Encoded]:
        encodings = tokenizer.encode_batch_fast([p.text for p in batch], add_special_tokens=False)
        return [
            _encoded(piece, encoding.ids, lengths, end_of_text)
            for piece, encoding in zip(batch, encodings, strict=True)
        ]

    workers = workers or _available_cores()
    waiting: deque[Future[list[Encoded]]] = deque()  # at most two batches a worker
    with (
        # The library keeps to the calling thread, so that ``workers`` means what it says.
        mock.patch.dict(os.environ, TOKENIZERS_PARALLELISM="false"),
        ThreadPoolExecutor(workers, thread_name_prefix="encode") as pool,
    ):
        for batch in _batches(pieces):
            waiting.append(pool.submit(encode, batch))
            if len(waiting) >= 2 * workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def _encoded(piece: Piece, ids: list[int], lengths: Ids, end_of_text: int) -> Encoded:
    text = piece.text.encode()
    row = np.array(ids, dtype=np.int32)
    decoded = int(lengths[row].sum(dtype=np.int64))
    if piece.ends and end_of_text >= 0:
        row = np.append(row, np.int32(end_of_text))
    kept = text if piece.split == "held_out" else b""
    return Encoded(piece.split, row, kept, len(text), decoded)


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    characters = 0
    for piece in pieces:
        if len(piece.text) > _LARGEST_PIECE:
            raise DataError(
                f"document {piece.key!r} has {len(piece.text)} characters, the limit is "
                f"{_LARGEST_PIECE}; cut it into documents (separator of TextFiles)"
            )
        batch.append(piece)
        characters += len(piece.text)
        if characters >= _BATCH_CHARACTERS or len(batch) >= _BATCH_PIECES:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
