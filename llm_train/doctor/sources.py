"""Prepared tokens against their manifest, and the tokenizer against the network."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import tokenizers

from llm_train.context import Finding
from llm_train.data.shards import describe_file
from llm_train.data.token_manifest import Manifest
from llm_train.settings import Settings

_SECONDS = 10.0


def data(settings: Settings) -> Iterator[Finding]:
    """Hashes of files in a random order, as many as the time allows."""
    folder = settings.data.source.folder
    if folder is None or not settings.data.source.prepared:
        return
    files = Manifest.load(folder).files
    random.shuffle(files)
    began, done = time.perf_counter(), 0
    for file in files:
        if time.perf_counter() - began > _SECONDS:
            break
        if describe_file(folder / file.name).sha256 != file.sha256:
            text = f"{folder / file.name} is damaged: its sha256 is not the manifest's"
            yield Finding("data", text, "failed", "llm-train prepare --force with the same options")
        done += 1
    yield Finding("data", f"sha256 of {done} of {len(files)} files in {folder} compared")


def tokenizer(settings: Settings) -> Iterator[Finding]:
    """The tokenizer that will go with the checkpoints knows the ids of the data and the network."""
    source, known = settings.data.source, settings.task.network_config.token_ids
    if not source.prepared or not (text := source.tokenizer_text()):
        return
    ids = tokenizers.Tokenizer.from_str(text).get_vocab_size()
    shown = f"tokenizer {ids:,}, data {source.vocab_size():,}, network {known:,} token ids"
    if ids == source.vocab_size() <= known:
        yield Finding("tokenizer", shown)
    elif ids != source.vocab_size():
        remedy = "the tokenizer is not the one that made the data: llm-train prepare --force"
        yield Finding("tokenizer", shown, "failed", remedy)
    else:
        remedy = f"set model.network.init_args.vocab_size to {ids}"
        yield Finding("tokenizer", shown, "failed", remedy)
