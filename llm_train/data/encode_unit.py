"""One unit of a corpus to files of its own, in one process: read, hash, cut, encode, write.

Reading runs in a thread a batch ahead: decompression, hashing and the encoder leave the interpreter
to each other. The file that describes the unit is the last, so its presence says that the rest is
there; what it holds follows from recipe and text alone, whoever wrote it and however often.
"""

import dataclasses
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from llm_train.data.base import NO_TOKEN, TRAIN, Ids, Piece, Skipped
from llm_train.data.encoding import Cutter
from llm_train.data.reading import Assignment, Reading, Rules, Tally
from llm_train.data.shards import TOKEN_BYTES, TOKENIZER, ShardWriter, sums_of
from llm_train.data.token_manifest import StoredSplit
from llm_train.data.tokenizer.encoders import choose_encoder
from llm_train.data.tokenizer.tokenizer_file import load_tokenizer
from llm_train.runtime import disk
from llm_train.runtime.structure import structure

_BATCH_CHARACTERS = 1 << 19  # a library may hold 100 times as many bytes while it encodes them
_BATCH_TEXTS = 2048
_REASON = "too long a text for one piece"
REFERENCE_BYTES = 4 << 20  # gzip and xz take 0.4 s a megabyte; no figure is worth a minute

T = TypeVar("T")


class Encoding:
    """How text becomes ids: the library, what cuts long texts, and the bytes of each id.

    Args:
        directory: that holds the tokenizer.
        sample: text to choose the library by.
        end_of_text: the id after each document; -1 appends none.
        shard_tokens: tokens per file.
    """

    def __init__(
        self, directory: Path, sample: Sequence[str], end_of_text: int, shard_tokens: int
    ) -> None:
        path = directory / TOKENIZER
        self.encoder, self.cutter = choose_encoder(path, sample), Cutter.of(load_tokenizer(path))
        self.lengths: Ids = np.load(directory / TOKEN_BYTES, allow_pickle=False)
        self.end_of_text, self.shard_tokens = end_of_text, shard_tokens


@dataclass(frozen=True, kw_only=True)
class StoredUnit:
    """What is known of a finished unit.

    Attributes:
        stamp: of the unit when it was read.
        encoder: that encoded it.
        content: hash of its documents.
        tally: what became of its documents.
        splits: what was written.
    """

    stamp: str
    encoder: str
    content: str
    tally: Tally
    splits: dict[str, StoredSplit]

    def save(self, directory: Path, number: int) -> None:
        """Makes the unit finished."""
        disk.write_manifest(unit_file(directory, number), dataclasses.asdict(self))

    @classmethod
    def load(cls, directory: Path, task: Assignment) -> "StoredUnit | None":
        """A unit that is finished and whose text has not changed since."""
        try:
            plain = json.loads(unit_file(directory, task.number).read_bytes())
            stored = structure(cls, plain)
        except (OSError, ValueError):
            return None
        return stored if stored.stamp == task.unit.stamp else None


def unit_file(directory: Path, number: int) -> Path:
    """The file that says a unit is finished."""
    return directory / f"unit-{number:05d}.json"


def extras_file(directory: Path, split: str, number: int) -> Path:
    """The file with what the shards of a split do not hold, until all units are there."""
    return directory / f"{split}-{number:05d}.npz"


class _PendingText(NamedTuple):
    """A text to encode; ``key`` is its document's where that begins, else None."""

    text: str
    key: str | None
    ends: bool


class _Side:
    """Writes what belongs to one split."""

    def __init__(self, directory: Path, split: str, number: int, encoding: Encoding) -> None:
        self._extras = extras_file(directory, split, number)
        self._keeps_text = split != TRAIN
        self._encoding = encoding
        vocab_size, shard_tokens = encoding.lengths.size, encoding.shard_tokens
        self.writer = ShardWriter(directory, split, vocab_size, shard_tokens, number)
        self._starts: list[npt.NDArray[np.int64]] = []
        self._keys, self._key_sizes = bytearray(), list[int]()
        self._text = bytearray()

    def write(self, batch: Sequence[_PendingText]) -> None:
        """Encodes and appends a batch."""
        encoding = self._encoding
        rows = encoding.encoder.encode([each.text for each in batch])
        texts = [each.text.encode() for each in batch]
        size = sum(map(len, texts))
        bounded = encoding.end_of_text != NO_TOKEN
        closing = np.array([each.ends and bounded for each in batch])
        sizes = np.fromiter(map(len, rows), np.int64, len(rows)) + closing
        begins = np.array([each.key is not None for each in batch])
        self._starts.append((self.writer.tokens + np.cumsum(sizes) - sizes)[begins])
        for _, key, _ in batch:
            if key is not None:
                stored = key.encode("utf-8", "surrogateescape")  # names of files need not be UTF-8
                self._keys += stored
                self._key_sizes.append(len(stored))
        end, parts = np.array([encoding.end_of_text], dtype=np.int32), list[Ids]()
        for row, ends in zip(rows, closing.tolist(), strict=True):
            parts += (row, end) if ends else (row,)
        ids = np.concatenate(parts)
        documents = int(begins.sum())
        # A document's ends may have lengths of their own, which the token after it makes up for.
        uncounted = documents - int(closing.sum())
        decoded = int(encoding.lengths[ids].sum(dtype=np.int64))
        if bounded:
            decoded += uncounted * int(encoding.lengths[encoding.end_of_text])
        self.writer.add(ids, documents=documents, text_bytes=size, decoded_bytes=decoded)
        if self._keeps_text and len(self._text) <= REFERENCE_BYTES:
            self._text += b"".join(texts)

    def finish(self) -> StoredSplit:
        """Writes what the shards do not hold; the writer has been left."""
        stored = self.writer.stored()
        with disk.written(self._extras) as staged, open(staged, "wb") as file:
            np.savez(
                file,
                sums=sums_of(self._extras.parent, stored.shards),
                starts=np.concatenate([np.zeros(0, np.int64), *self._starts]),
                keys=np.frombuffer(self._keys, np.uint8),
                key_sizes=np.array(self._key_sizes, np.int64),
                text=np.frombuffer(self._text, np.uint8),
            )
        return stored


def encode_unit(
    directory: Path, task: Assignment, rules: Rules, encoding: Encoding, seen: Callable[[int], None]
) -> None:
    """Reads a unit and writes its files.

    Args:
        directory: where to.
        task: what to read.
        rules: what decides on documents.
        encoding: how text becomes ids.
        seen: told the bytes of text that were done since the last call, every second or so.
    """
    reading, sides = Reading(task=task, rules=rules), dict[str, _Side]()
    with ExitStack() as stack:
        for split, batch in _ahead(_batches(reading, encoding.cutter)):
            if split not in sides:
                side = sides[split] = _Side(directory, split, task.number, encoding)
                stack.enter_context(side.writer)
            sides[split].write(batch)
            seen(sum(len(each.text) for each in batch))
    StoredUnit(
        stamp=task.unit.stamp,
        encoder=encoding.encoder.name,
        content=reading.content.hexdigest(),
        tally=reading.tally,
        splits={name: side.finish() for name, side in sorted(sides.items())},
    ).save(directory, task.number)


def _batches(reading: Reading, cutter: Cutter) -> Iterator[tuple[str, list[_PendingText]]]:
    """Texts of one split at a time."""
    waiting: dict[str, list[_PendingText]] = defaultdict(list)
    sizes = Counter[str]()
    for piece in reading.pieces():
        texts = cutter.pieces(piece.text)
        if texts is None:
            reading.tally.kept -= 1
            reading.tally.skip(_too_long(piece, cutter))
            continue
        for number, text in enumerate(texts, start=1):
            batch, key = waiting[piece.split], piece.key if number == 1 else None
            batch.append(_PendingText(text, key, piece.ends and number == len(texts)))
            sizes[piece.split] += len(text)
            if sizes[piece.split] >= _BATCH_CHARACTERS or len(batch) >= _BATCH_TEXTS:
                yield piece.split, waiting.pop(piece.split)
                sizes[piece.split] = 0
    yield from waiting.items()


def _too_long(piece: Piece, cutter: Cutter) -> Skipped:
    where = "without a place to cut it" if cutter.cuts else "and this tokenizer reads it whole"
    return Skipped(piece.key, _REASON, f"{len(piece.text)} characters, {where}")


def _ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, each of which is made while the one before it is used."""
    with ThreadPoolExecutor(1, thread_name_prefix="read") as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item
