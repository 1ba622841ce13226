"""Tokens that ``llm-train prepare`` wrote."""

import json
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np

from llm_train.data import shards
from llm_train.data.base import HELD_OUT, TRAIN, Ids
from llm_train.data.packing import PackedWindows
from llm_train.data.reader import ShardTokens
from llm_train.data.remote_folder import RemoteFolder, ShardCache
from llm_train.data.remote_shards import AheadWindows, RemoteShards
from llm_train.data.token_manifest import FILE_NAME, REMEDY, Manifest, StoredSplit
from llm_train.data.token_source import Documents, TokenSource, Windows
from llm_train.data.windows import HeldOutWindows, TrainWindows
from llm_train.errors import ConfigError, DataError, check_choices


@dataclass(frozen=True, kw_only=True)
class TokenShards(TokenSource):
    """Reads a directory of token shards, and verifies each block of them before its first use.

    Attributes:
        path: the directory; `llm-train prepare` writes it. Or its copy at any URL that fsspec
            knows, as in `s3://bucket/tokens`, whose blocks are fetched when they are needed.
        cache: where blocks from a URL are kept.
        packing: concatenate cuts all documents, one after another, into windows; best_fit cuts none
            that fits into a window, and leaves places empty.
    """

    path: str
    cache: ShardCache = ShardCache()  # noqa: RUF009 - frozen
    packing: Literal["concatenate", "best_fit"] = "concatenate"

    unmasked = True  # documents follow one another without padding

    def __post_init__(self) -> None:
        check_choices(self)
        # A part of the configuration is frozen, and this follows from it.
        object.__setattr__(self, "unmasked", self.packing == "concatenate")
        if not self.path:
            raise ConfigError("path='' names no directory; set data.source.path")
        if self._remote is None and self.cache != ShardCache():
            raise ConfigError(
                f"data.source.cache has no effect with path={self.path}, which is no URL; "
                "leave it out"
            )

    @property
    def folder(self) -> Path | None:
        """The directory; nothing is prepared at a URL."""
        return Path(self.path) if self._remote is None else None

    @cached_property
    def _remote(self) -> RemoteFolder | None:
        return RemoteFolder(self.path, self.cache) if "://" in self.path else None

    @cached_property
    def _home(self) -> Path:
        """Where manifest, tokenizer and checksums lie."""
        if self._remote is None:
            return Path(self.path)
        self._remote.mirror()
        return self._remote.folder

    @property
    def prepared(self) -> bool:
        """Whether the directory has a manifest; a URL is asked when it is used."""
        return self._remote is not None or (self._home / FILE_NAME).exists()

    def tokenizer_text(self) -> str:
        """From the file alongside the shards."""
        return self._content(shards.TOKENIZER).decode()

    def check(self) -> list[str]:
        """Reports a missing manifest, missing files and wrong sizes."""
        try:
            _ = self._home if self._remote else shards.verify(Path(self.path))
        except DataError as error:
            return [f"data.source.path={self.path}: {error}"]
        return []

    def manifest(self) -> Manifest:
        """What the directory says about itself."""
        return Manifest.load(self._home)

    def fingerprint(self) -> str:
        """Of the ids on both sides, not of the shards they happen to lie in."""
        splits = self.manifest().splits
        packed = () if self.packing == "concatenate" else (self.packing,)  # another order
        return "-".join((*(split.sha256[:32] for split in splits.values()), *packed))

    def identity(self) -> dict[str, str]:
        """The recipe's parts, the text as it was found, what the tokenizer is, and the packing."""
        manifest = self.manifest()
        sums = {file.name: file.sha256[:12] for file in manifest.others}
        made = {part: json.dumps(manifest.recipe.get(part)) for part in ("corpus", "split")}
        text, tokenizer = json.dumps(dict(manifest.provenance)), sums.get(shards.TOKENIZER, "")
        return {**made, "text": text, "tokenizer": tokenizer, "packing": self.packing}

    def vocab_size(self) -> int:
        """Number of ids of the tokenizer."""
        return self.manifest().vocab_size

    def train_windows(self, sequence: int, seed: int) -> Windows:
        """Windows of the training shards."""
        if self.packing == "best_fit":
            return self._packed(sequence, seed)
        tokens, fingerprint = self._tokens(TRAIN), self.fingerprint()
        if isinstance(tokens, RemoteShards):
            return AheadWindows(tokens, sequence, seed, fingerprint)
        return TrainWindows(tokens, sequence, seed, fingerprint)

    def _packed(self, sequence: int, seed: int) -> PackedWindows:
        tokens, documents = self._tokens(TRAIN), self.documents(TRAIN)
        return PackedWindows(tokens, documents, sequence, seed, self.fingerprint())

    def window_facts(self, sequence: int) -> dict[str, str | int | float]:
        """What packing leaves empty, and what it cuts."""
        if self.packing == "best_fit" and sequence not in self._facts:
            self._facts[sequence] = self._packed(sequence, 0).facts()
        return self._facts.get(sequence, {})

    @cached_property
    def _facts(self) -> dict[int, dict[str, str | int | float]]:
        return {}  # by sequence; metrics ask often

    def held_out_windows(self, sequence: int, name: str = HELD_OUT) -> Windows:
        """Windows of the shards of one held-out set."""
        return HeldOutWindows(self._tokens(name), sequence)

    def held_out_sets(self) -> tuple[str, ...]:
        """As prepared."""
        return tuple(self.manifest().held_out)

    def documents(self, split: str = TRAIN) -> Documents:
        """Those of the files alongside the shards."""
        stored = self.manifest().splits[split]
        counts = stored.documents, stored.tokens
        return shards.StoredDocuments(self._home, split, *counts, verify=self._verify)

    def _tokens(self, split: str) -> ShardTokens:
        if self._remote is not None:
            return RemoteShards(self._remote, self.manifest(), split)
        return ShardTokens(self._home, shards.verify(self._home), split)

    def end_of_text(self) -> int:
        """As the manifest says."""
        return self.manifest().end_of_text

    def token_bytes(self) -> Ids:
        """From the file alongside the shards."""
        lengths: Ids = np.load(BytesIO(self._content(shards.TOKEN_BYTES)), allow_pickle=False)
        return lengths

    def _verify(self, name: str) -> None:
        """Compares a file of any size alongside the shards with its checksum."""
        path, files = self._home / name, {file.name: file for file in self.manifest().others}
        if name not in files:
            raise DataError(f"{path} is not in its manifest; {REMEDY}")
        shards.check_size(path, files[name].bytes)
        shards.check_content(self._home, files[name])

    def _content(self, name: str) -> bytes:
        """A small file alongside the shards."""
        self._verify(name)
        return (self._home / name).read_bytes()

    def description(self) -> dict[str, str | int | float | None]:
        """Counts, tokenizer and the compressors' bits per byte."""
        manifest = self.manifest()
        named = manifest.recipe.get("tokenizer")
        tokenizer = named if isinstance(named, dict) else {}
        return {
            "path": self.path,
            **{
                f"{name}_{key}": value
                for name, split in manifest.splits.items()
                for key, value in _counts(split).items()
            },
            "skipped_documents": sum(manifest.skipped.values()),
            "vocab_size": manifest.vocab_size,
            "tokenizer": str(tokenizer.get("class_path", "")),
            **{f"{name}_bits_per_byte": value for name, value in manifest.references.items()},
        }


def _counts(split: StoredSplit) -> dict[str, int | float]:
    return {
        "tokens": split.tokens,
        "documents": split.documents,
        "bytes_per_token": split.text_bytes / max(1, split.tokens),
    }
