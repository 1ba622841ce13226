"""Tokens that ``llm-train prepare`` wrote."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np

from llm_train.data.base import HELD_OUT, SPLITS, TRAIN, Ids, TokenSource, Windows
from llm_train.data.packing import PackedWindows
from llm_train.data.reader import ShardTokens
from llm_train.data.shards import TOKEN_BYTES, TOKENIZER, verify
from llm_train.data.token_manifest import FILE_NAME, REMEDY, Manifest
from llm_train.data.windows import HeldOutWindows, TrainWindows
from llm_train.errors import ConfigError, DataError, check_choices
from llm_train.runtime.launch import find_launch

_NO_PLACES = "does not say where documents begin; prepare again with --force, or write concatenate"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TokenShards(TokenSource):
    """Reads a directory of token shards, and verifies each block of them before its first use.

    Attributes:
        path: the directory; `llm-train prepare` writes it.
        packing: concatenate cuts all documents, one after another, into windows; best_fit cuts none
            that fits into a window, and leaves places empty.
    """

    path: str
    packing: Literal["concatenate", "best_fit"] = "concatenate"

    unmasked = True  # documents follow one another without padding

    def __post_init__(self) -> None:
        check_choices(self)
        # A part of the configuration is frozen, and this follows from it.
        object.__setattr__(self, "unmasked", self.packing == "concatenate")
        if not self.path:
            raise ConfigError("path='' names no directory; set data.source.path")

    @property
    def folder(self) -> Path:
        """The directory."""
        return Path(self.path)

    @property
    def prepared(self) -> bool:
        """Whether the directory has a manifest."""
        return (self.folder / FILE_NAME).exists()

    def tokenizer_text(self) -> str:
        """From the file alongside the shards."""
        return self._content(TOKENIZER).decode()

    def check(self) -> list[str]:
        """Reports a missing manifest, missing files and wrong sizes."""
        try:
            verify(Path(self.path))
        except DataError as error:
            return [f"data.source.path={self.path}: {error}"]
        if self.packing == "best_fit" and self.documents(TRAIN) is None:
            return [f"data.source.packing=best_fit: {self.path} {_NO_PLACES}"]
        return []

    def manifest(self) -> Manifest:
        """What the directory says about itself."""
        return Manifest.load(self.folder)

    def fingerprint(self) -> str:
        """Of the ids on both sides, not of the shards they happen to lie in."""
        splits = self.manifest().splits
        packed = () if self.packing == "concatenate" else (self.packing,)  # another order
        return "-".join((*(splits[name].sha256[:32] for name in SPLITS), *packed))

    def vocab_size(self) -> int:
        """Number of ids of the tokenizer."""
        return self.manifest().vocab_size

    def train_windows(self, sequence: int, seed: int) -> Windows:
        """Windows of the training shards."""
        if self.packing == "best_fit":
            return self._packed(sequence, seed)
        return TrainWindows(self._tokens("train"), sequence, seed, self.fingerprint())

    def _packed(self, sequence: int, seed: int) -> PackedWindows:
        tokens, documents = self._tokens(TRAIN), self.documents(TRAIN)
        if documents is None:
            raise DataError(f"{self.folder} {_NO_PLACES}")
        return PackedWindows(tokens, documents, sequence, seed, self.fingerprint())

    def window_facts(self, sequence: int) -> dict[str, int | float]:
        """What packing leaves empty, and what it cuts."""
        return self._packed(sequence, 0).facts() if self.packing == "best_fit" else {}

    def held_out_windows(self, sequence: int, name: str = HELD_OUT) -> Windows:
        """Windows of the shards of one held-out set."""
        return HeldOutWindows(self._tokens(name), sequence)

    def _tokens(self, split: str) -> ShardTokens:
        manifest = verify(self.folder)
        if not manifest.has_sums and split == "train" and find_launch().rank == 0:
            _log.warning(
                "%s was prepared without checksums of blocks, so that damage would pass unnoticed; "
                "run `llm-train prepare` with its recipe, which adds them",
                self.folder,
            )
        return ShardTokens(self.folder, manifest, split)

    def end_of_text(self) -> int:
        """As the manifest says."""
        return self.manifest().end_of_text

    def token_bytes(self) -> Ids:
        """From the file alongside the shards."""
        path, expected = self.folder / TOKEN_BYTES, self.vocab_size()
        try:
            content = BytesIO(self._content(TOKEN_BYTES))
            lengths: Ids = np.load(content, allow_pickle=False)  # no pickled objects
        except ValueError as error:
            raise DataError(f"{path} is unreadable: {error}; prepare again with --force") from None
        if lengths.shape != (expected,) or lengths.dtype.kind not in "iu":
            raise DataError(
                f"{path} holds {lengths.dtype} {lengths.shape}, not one integer for each of "
                f"{expected} ids; prepare again with --force"
            )
        return lengths

    def _content(self, name: str) -> bytes:
        """A small file alongside the shards, compared with its checksum where there is one."""
        path = self.folder / name
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path} is unreadable: {error.strerror}; {REMEDY}") from None
        sums = {file.name: file.sha256 for file in self.manifest().others}
        if sums.get(name, found := hashlib.sha256(content).hexdigest()) != found:
            raise DataError(f"{path} is damaged: its sha256 is not the manifest's; {REMEDY}")
        return content

    def description(self) -> dict[str, str | int | float | None]:
        """Counts, tokenizer and the compressors' bits per byte."""
        manifest = self.manifest()
        train, held_out = (manifest.splits[name] for name in SPLITS)
        named = manifest.recipe.get("tokenizer")
        tokenizer = named if isinstance(named, dict) else {}
        return {
            "path": self.path,
            "train_tokens": train.tokens,
            "train_documents": train.documents,
            "train_bytes_per_token": train.text_bytes / max(1, train.tokens),
            "held_out_tokens": held_out.tokens,
            "held_out_documents": held_out.documents,
            "held_out_bytes_per_token": held_out.text_bytes / max(1, held_out.tokens),
            "skipped_documents": sum(manifest.skipped.values()),
            "vocab_size": manifest.vocab_size,
            "tokenizer": str(tokenizer.get("class_path", "")),
            **{f"{name}_bits_per_byte": value for name, value in manifest.references.items()},
        }
