"""Finished units to one directory of token shards: nothing is copied but what is small.

Shards stay where they are. The checksums of their blocks and the places of documents, which each
unit has in a file of its own, are joined to one file a split.
"""

import gzip
import lzma
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from llm_train.data.encode_unit import REFERENCE_BYTES, StoredUnit, extras_file
from llm_train.data.shards import describe_file, hash_of, keys_name, starts_name
from llm_train.data.token_manifest import StoredFile, StoredSplit, sums_name


def joined_split(units: Sequence[StoredUnit], name: str) -> StoredSplit:
    """One split, whatever number of units it lies in."""
    parts = [unit.splits[name] for unit in units if name in unit.splits]
    shards = [shard for part in parts for shard in part.shards]
    return StoredSplit(
        tokens=sum(part.tokens for part in parts),
        documents=sum(part.documents for part in parts),
        text_bytes=sum(part.text_bytes for part in parts),
        decoded_bytes=sum(part.decoded_bytes for part in parts),
        sha256=hash_of(shards),
        shards=shards,
    )


def join_files(directory: Path, units: Sequence[StoredUnit], name: str) -> list[StoredFile]:
    """Writes the files of a split that are not shards."""
    names = sums_name(name), starts_name(name), keys_name(name)
    first_token = first_key = 0
    with (
        open(directory / names[0], "wb") as sums,
        open(directory / names[1], "wb") as starts,
        open(directory / names[2], "wb") as keys,
    ):
        for number, unit in enumerate(units):
            if name not in unit.splits:
                continue
            with np.load(extras_file(directory, name, number)) as extras:
                _write(sums, extras["sums"], "<u4")
                ends = first_key + np.cumsum(extras["key_sizes"])
                _write(starts, np.stack([first_token + extras["starts"], ends], 1), "<u8")
                _write(keys, extras["keys"], "u1")
                first_key += extras["keys"].size
            first_token += unit.splits[name].tokens
    return [describe_file(directory / each) for each in names]


def _write(file: BinaryIO, values: np.ndarray, dtype: str) -> None:
    file.write(values.astype(dtype).tobytes())


def references(directory: Path, units: Sequence[StoredUnit], name: str) -> dict[str, float | None]:
    """Bits per byte that compressors need for a held-out set; None if it is large, or empty."""
    text = b""
    if joined_split(units, name).text_bytes <= REFERENCE_BYTES:
        for number, unit in enumerate(units):
            if name in unit.splits:
                with np.load(extras_file(directory, name, number)) as extras:
                    text += extras["text"].tobytes()
    compressed = {"gzip_9": gzip.compress(text, 9), "xz_9": lzma.compress(text, preset=9)}
    return {key: 8.0 * len(c) / len(text) if text else None for key, c in compressed.items()}
