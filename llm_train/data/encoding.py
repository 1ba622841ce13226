"""Text to token ids on all cores, in order, in bounded memory.

Threads, not processes: the tokenizers library releases the interpreter lock while it encodes, and
on 2 cores two threads took 1.45 s where two forked processes took 1.58 s and the library's own
thread pool 1.89 s (6 MB of Python source). Threads also share one tokenizer and start at once.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import numpy as np
import tokenizers

from llm_train.data.base import Ids, Piece, SplitName
from llm_train.errors import DataError

# An Encoding holds every token's string: some 100 times the text. One batch is a few MB of text.
_BATCH_CHARACTERS = 1 << 19
_BATCH_PIECES = 256
_LARGEST_PIECE = 1 << 28

A = TypeVar("A")
B = TypeVar("B")


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


def available_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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

    with _library_threads_off():
        for batch in _ordered_map(encode, _batches(pieces), workers or available_cores()):
            yield from batch


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


def _ordered_map(function: Callable[[A], B], items: Iterable[A], workers: int) -> Iterator[B]:
    """Like ``map`` on a pool, never more than two items a worker ahead of the consumer."""
    waiting: deque[Future[B]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="encode") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


@contextmanager
def _library_threads_off() -> Iterator[None]:
    """Keeps tokenizers to the calling thread, so that ``workers`` means what it says."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
