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

FILE_NAME = "manifest.json"
VERSION = 1


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
            plain["splits"] = {name: _split(plain["splits"][name]) for name in SPLITS}
            plain["others"] = [StoredFile(**file) for file in plain["others"]]
            # By field: earlier manifests of this version have two more that nobody read.
            return cls(**{field.name: plain[field.name] for field in dataclasses.fields(cls)})
        except FileNotFoundError:
            raise DataError(
                f"no prepared tokens in {directory}; run `llm-train prepare -c CONFIG`"
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path} is not a manifest of token shards ({error!r}); prepare again with --force"
            ) from None


def _split(plain: dict[str, Any]) -> StoredSplit:
    return StoredSplit(**{**plain, "shards": [StoredFile(**file) for file in plain["shards"]]})
