"""Finished units to one directory of token shards: nothing is copied but what is small.

Shards stay where they are. The checksums of their blocks and the places of documents, which each
unit has in a file of its own, are joined to one file a split.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

import numpy as np

from llm_train.data.documents import keys_name, starts_name
from llm_train.data.encode_unit import StoredUnit, extras_file
from llm_train.data.references import LIMIT_BYTES, bits_per_byte
from llm_train.data.shards import describe_file, hash_of
from llm_train.data.tally import Tally
from llm_train.data.token_manifest import StoredFile, StoredSplit, sums_name


@dataclass(frozen=True, kw_only=True)
class Merged:
    """All units of a preparation.

    Attributes:
        directory: where they are.
        units: in the order of the corpus.
    """

    directory: Path
    units: Sequence[StoredUnit]

    @property
    def tally(self) -> Tally:
        """What became of all documents."""
        return Tally.total(unit.tally for unit in self.units)

    @property
    def encoder(self) -> str:
        """The libraries that encoded."""
        return ", ".join(sorted({unit.encoder for unit in self.units}))

    @property
    def content(self) -> str:
        """Hash of all documents."""
        return content_of(unit.content for unit in self.units)

    def split(self, name: str) -> StoredSplit:
        """One split, whatever number of units it lies in."""
        parts = [unit.splits[name] for unit in self.units if name in unit.splits]
        shards = [shard for part in parts for shard in part.shards]
        return StoredSplit(
            tokens=sum(part.tokens for part in parts),
            documents=sum(part.documents for part in parts),
            text_bytes=sum(part.text_bytes for part in parts),
            decoded_bytes=sum(part.decoded_bytes for part in parts),
            sha256=hash_of(shards),
            shards=shards,
        )

    def join(self, name: str) -> list[StoredFile]:
        """Writes the files of a split that are not shards."""
        names = sums_name(name), starts_name(name), keys_name(name)
        first_token = first_key = 0
        with (
            open(self.directory / names[0], "wb") as sums,
            open(self.directory / names[1], "wb") as starts,
            open(self.directory / names[2], "wb") as keys,
        ):
            for number, unit in enumerate(self.units):
                if name not in unit.splits:
                    continue
                with np.load(extras_file(self.directory, name, number)) as extras:
                    _write(sums, extras["sums"], "<u4")
                    ends = first_key + np.cumsum(extras["key_sizes"])
                    _write(starts, np.stack([first_token + extras["starts"], ends], 1), "<u8")
                    _write(keys, extras["keys"], "u1")
                    first_key += extras["keys"].size
                first_token += unit.splits[name].tokens
        return [describe_file(self.directory / each) for each in names]

    def references(self, name: str) -> dict[str, float | None]:
        """What compressors make of a held-out set, if it is small."""
        text = bytearray()
        if self.split(name).text_bytes <= LIMIT_BYTES:
            for number, unit in enumerate(self.units):
                if name in unit.splits:
                    with np.load(extras_file(self.directory, name, number)) as extras:
                        text += extras["text"].tobytes()
        return bits_per_byte(text)


def _write(file: BinaryIO, values: np.ndarray, dtype: str) -> None:
    file.write(values.astype(dtype).tobytes())


def content_of(units: Iterable[str]) -> str:
    """Hash of all documents, from those of units."""
    return sha256("\n".join(units).encode()).hexdigest()
