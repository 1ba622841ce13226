"""The file that makes a directory of token shards complete.

It is written last, so its presence says that everything it names was written; it holds no dates and
no host names, so the same recipe on the same text gives the same bytes.
"""

import dataclasses
import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from llm_train.data.base import TRAIN
from llm_train.errors import DataError
from llm_train.runtime import disk
from llm_train.runtime.structure import structure

FILE_NAME = "manifest.json"
VERSION = 2
DTYPES = {"uint16": 2, "uint32": 4}  # bytes of a stored token id
REMEDY = "prepare again with --force, or restore it from a copy"


def sums_name(split: str) -> str:
    """The file with a CRC-32 for each block of a split's shards; see ``shards``."""
    return f"{split}.crc32"


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """One file: its name in the directory, size and checksum."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class StoredSplit:
    """The training text, or one held-out set.

    Attributes:
        tokens: token ids, boundary tokens included.
        documents: documents that have at least one character in it.
        text_bytes: UTF-8 bytes of the text.
        decoded_bytes: bytes the tokens decode to; differs from ``text_bytes`` only for a tokenizer
            that normalises its input.
        sha256: of sizes and hashes of the shards.
        shards: files of token ids, in order.
    """

    tokens: int
    documents: int
    text_bytes: int
    decoded_bytes: int
    sha256: str
    shards: list[StoredFile]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What ``manifest.json`` holds.

    Attributes:
        version: of the format.
        dtype: of the token ids, little-endian.
        vocab_size: ids are below it.
        end_of_text: id of the token after each document, -1 where there is none.
        splits: the training text, and then each held-out set.
        others: tokenizer, byte lengths, the checksums of blocks, and the places of documents.
        recipe: the configuration that made the tokens, as plain values.
        provenance: what outside the recipe the tokens depend on.
        skipped: number of skipped documents by reason.
        references: bits per byte of the held-out text under general compressors; null: too long.
        examples: the first skipped document by reason: its place, and what was found.
        encoder: library and version that encoded; the ids do not depend on it.
        content: hash of all documents, to compare with when all of them are read again.
    """

    version: int
    dtype: str
    vocab_size: int
    end_of_text: int
    splits: dict[str, StoredSplit]
    others: list[StoredFile]
    recipe: dict[str, Any]
    provenance: dict[str, str | int]
    skipped: dict[str, int]
    references: dict[str, float | None]
    examples: dict[str, str]
    encoder: str
    content: str

    @property
    def held_out(self) -> list[str]:
        """Names of the held-out sets."""
        return [name for name in self.splits if name != TRAIN]

    @property
    def files(self) -> list[StoredFile]:
        """Every file of the directory but the manifest."""
        return [*self.others, *(shard for split in self.splits.values() for shard in split.shards)]

    def __post_init__(self) -> None:
        """Refuses what a manifest from elsewhere could do harm with."""
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype={self.dtype} is not one of {', '.join(DTYPES)}")
        for file in self.files:
            # ``Path`` would take half a second for 60,000 names.
            if not file.name or "\0" in file.name or os.path.basename(file.name) != file.name:
                raise ValueError(f"{file.name!r} is not the name of a file in its directory")

    def save(self, directory: Path) -> None:
        """Writes the manifest under its name in one step."""
        # Through JSON and back: the checksum is of what a reader will see.
        body = json.loads(json.dumps(dataclasses.asdict(self)))
        disk.write_manifest(directory / FILE_NAME, {**body, "crc32": _crc32_of(body)})

    @classmethod
    def load(cls, directory: Path) -> "Manifest":
        """Reads the manifest of a directory.

        Raises:
            DataError: none there, or not one this version can read.
        """
        path = directory / FILE_NAME
        try:
            return _parsed(path, path.read_bytes())
        except FileNotFoundError:
            raise DataError(
                f"no prepared tokens in {directory}; run `llm-train prepare -c CONFIG`"
            ) from None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(
                f"{path} is not a manifest of token shards ({error!r}); prepare again with --force"
            ) from None


@lru_cache(maxsize=2)  # a start asks a dozen times, and 60,000 shards take half a second
def _parsed(path: Path, content: bytes) -> Manifest:
    plain = json.loads(content.decode())
    if plain["version"] != VERSION:
        raise DataError(
            f"{path} has format version {plain['version']}, this program reads {VERSION}; "
            "prepare again with --force"
        )
    if plain.pop("crc32", None) != _crc32_of(plain):
        raise ValueError("it does not match its own checksum")
    return structure(Manifest, plain)


def _crc32_of(body: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(body, sort_keys=True).encode())
