"""The file that makes a directory of token shards complete.

It is written last, so its presence says that everything it names was written; it holds no dates and
no host names, so the same recipe on the same text gives the same bytes.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_train.data.base import SPLITS, SplitName
from llm_train.errors import DataError
from llm_train.runtime import disk
from llm_train.runtime.structure import structure

FILE_NAME = "manifest.json"
VERSION = 1
DTYPES = {"uint16": 2, "uint32": 4}  # bytes of a stored token id


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """One file: its name in the directory, size and checksum."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class StoredSplit:
    """One side of the split.

    Attributes:
        tokens: token ids, boundary tokens included.
        documents: documents that have at least one character on this side.
        text_bytes: UTF-8 bytes of the text.
        decoded_bytes: bytes the tokens decode to; differs from ``text_bytes`` only for a tokenizer
            that normalises its input.
        sha256: of all token ids in their stored dtype, whatever the shards.
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
        splits: the two sides.
        others: tokenizer and byte lengths.
        recipe: the configuration that made the tokens, as plain values.
        provenance: what outside the recipe the tokens depend on.
        skipped: number of skipped documents by reason.
        references: bits per byte of the held-out text under general compressors; null: too long.
    """

    version: int
    dtype: str
    vocab_size: int
    end_of_text: int
    splits: dict[SplitName, StoredSplit]
    others: list[StoredFile]
    recipe: dict[str, Any]
    provenance: dict[str, str | int]
    skipped: dict[str, int]
    references: dict[str, float | None]

    @property
    def files(self) -> list[StoredFile]:
        """Every file of the directory but the manifest."""
        return [*self.others, *(shard for name in SPLITS for shard in self.splits[name].shards)]

    def __post_init__(self) -> None:
        """Compares what the fields say with one another: each of them decides what is read."""
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype={self.dtype} is not one of {', '.join(DTYPES)}")
        for file in self.files:
            if Path(file.name).name != file.name:
                raise ValueError(f"{file.name} is not the name of a file in its directory")
        for name, split in self.splits.items():
            held = sum(shard.bytes for shard in split.shards)
            if held != split.tokens * DTYPES[self.dtype]:
                raise ValueError(
                    f"splits.{name}: {split.tokens} tokens of {self.dtype} do not take {held} bytes"
                )

    def save(self, directory: Path) -> None:
        """Writes the manifest under its name in one step."""
        disk.write_manifest(directory / FILE_NAME, dataclasses.asdict(self))

    @classmethod
    def load(cls, directory: Path) -> Manifest:
        """Reads the manifest of a directory.

        Raises:
            DataError: none there, or not one this version can read.
        """
        path = directory / FILE_NAME
        try:
            plain = json.loads(path.read_text(encoding="utf-8"))
            if plain["version"] != VERSION:
                raise DataError(
                    f"{path} has format version {plain['version']}, this program reads {VERSION}; "
                    "prepare again with --force"
                )
            # By field: earlier manifests of this version have two more that nobody read.
            return structure(cls, plain)
        except FileNotFoundError:
            raise DataError(
                f"no prepared tokens in {directory}; run `llm-train prepare -c CONFIG`"
            ) from None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(
                f"{path} is not a manifest of token shards ({error!r}); prepare again with --force"
            ) from None
