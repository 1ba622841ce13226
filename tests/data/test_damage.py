"""Damage to prepared tokens is found before they are used, and ends a run in one line."""

import dataclasses
import os
import random
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from llm_train.data import Characters, TailSplit, TextFiles, Tokenize, TokenShards, prepare, reader
from llm_train.data.base import HELD_OUT, TRAIN
from llm_train.data.module import TokenData
from llm_train.data.reader import ShardTokens
from llm_train.data.sampler import Share
from llm_train.data.shards import BLOCK_BYTES, ShardWriter, sums_of, verify
from llm_train.data.token_manifest import VERSION, Manifest, sums_name
from llm_train.errors import DataError
from llm_train.testing.configs import part, tiny, write
from llm_train.testing.fork_server import ForkServer
from llm_train.trainer.logger.records import read_lines

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def prepared(path: Path, characters: int, shard_tokens: int) -> Path:
    text = "".join(random.Random(characters).choices(LETTERS, k=characters))
    path.with_suffix(".txt").write_text(text)
    recipe = Tokenize(
        corpus=TextFiles(paths=[str(path.with_suffix(".txt"))]),
        tokenizer=Characters(),
        split=TailSplit(fraction=0.1),
        shard_tokens=shard_tokens,
    )
    prepare(recipe, path, progress=False)
    return path


def everything(directory: Path) -> list[object]:
    """All that a run takes from prepared tokens, or what it is told instead."""
    source = TokenShards(path=str(directory))
    if problems := source.check():
        raise DataError(problems[0])
    manifest = verify(directory)
    found: list[object] = [source.fingerprint(), source.tokenizer_text(), manifest]
    found.append(source.token_bytes().tolist())
    for split in (TRAIN, HELD_OUT):
        tokens = ShardTokens(directory, manifest, split)
        found.append(tokens.rows([0], len(tokens))[0].tolist())
        places = source.documents(split)
        assert places is not None
        found.append([places.find(start) for start in places.starts().tolist()])
    return found


def refusal(directory: Path) -> str:
    try:
        everything(directory)
    except DataError as error:
        return str(error)
    return ""


def harm(files: list[Path], draw: random.Random) -> str:
    """Damages one of the files, or two; returns what was done."""
    victim = draw.choice(files)
    content = bytearray(victim.read_bytes())
    kind = draw.choice(["flip", "flip", "flip", "cut", "drop", "swap"])
    if kind == "flip":
        bit = draw.randrange(8 * len(content))
        content[bit // 8] ^= 1 << bit % 8
        victim.write_bytes(content)
        return f"bit {bit} of {victim.name} flipped"
    if kind == "cut":
        size = draw.randrange(len(content) - 1)  # more than the line break at the manifest's end
        victim.write_bytes(content[:size])
        return f"{victim.name} cut to {size} bytes"
    victim.unlink()
    if kind == "drop":
        return f"{victim.name} removed"
    # One document lies on both sides of the split, and gives both the same keys.
    other = draw.choice([file for file in files if file != victim and file.read_bytes() != content])
    other.rename(victim)
    other.write_bytes(content)
    return f"{victim.name} and {other.name} exchanged"


@pytest.mark.parametrize(
    "trials", [300, pytest.param(10_000, marks=[pytest.mark.faults, pytest.mark.timeout(3600)])]
)
def test_any_damage_is_found_before_use(tmp_path: Path, trials: int) -> None:
    directory = prepared(tmp_path / "shards", 6000, shard_tokens=1500)
    good = everything(directory)
    contents = {file: file.read_bytes() for file in sorted(directory.iterdir())}
    for seed in range(trials):
        done = harm(list(contents), random.Random(seed))
        message = refusal(directory)
        assert message, f"seed {seed}: {done} and nobody noticed"
        assert "\n" not in message, f"seed {seed}: {done}"
        for file, content in contents.items():
            file.write_bytes(content)
        if seed % 10 == 0:
            assert everything(directory) == good


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return prepared(tmp_path / "shards", 100_000, shard_tokens=1 << 20)


def test_block_is_verified_when_it_is_first_read(shards: Path) -> None:
    victim = shards / "train-00000.bin"
    content = bytearray(victim.read_bytes())
    content[BLOCK_BYTES + 5] ^= 1
    victim.write_bytes(content)
    tokens = ShardTokens(shards, verify(shards), "train")
    tokens.rows([0], BLOCK_BYTES // 2)
    with pytest.raises(DataError, match=r"train-00000.bin .* block 1, from byte 65536 .*--force"):
        tokens.rows([1], BLOCK_BYTES // 2)


def test_id_beyond_the_vocabulary_is_refused_by_writer_and_reader(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "train", 10, shard_tokens=99) as writer:
        writer.add(np.arange(10))
        for wrong in (10, -1):
            with pytest.raises(DataError, match=f"token 11 .* id {wrong}, .* 10 ids"):
                writer.add(np.array([3, wrong]))
    stored = writer.stored()
    (tmp_path / "train-00000.bin").write_bytes(np.array([1, 10, 2], "<u2").tobytes())
    shards = [dataclasses.replace(stored.shards[0], bytes=6)]
    split = dataclasses.replace(stored, tokens=3, shards=shards)
    none = dataclasses.replace(stored, tokens=0, shards=[])
    manifest = Manifest(
        version=VERSION, dtype="uint16", vocab_size=10, end_of_text=-1, others=[], recipe={},
        splits={"train": split, "held_out": none}, provenance={}, skipped={}, references={},
        examples={}, encoder="", content="",
    )  # fmt: skip
    sums_of(tmp_path, shards).tofile(tmp_path / sums_name("train"))
    with pytest.raises(DataError, match=r"train-00000.bin holds id 10 at byte 2, .* 10 ids"):
        ShardTokens(tmp_path, manifest, "train").rows([0], 1)


def test_shard_that_shrinks_or_vanishes_while_it_is_read(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = ShardTokens(shards, verify(shards), "train")
    tokens.rows([60_000], 100)
    os.truncate(shards / "train-00000.bin", 4096)
    with pytest.raises(DataError, match=r"train-00000.bin has 4096 bytes, .* 180000; .*--force"):
        tokens.rows([60_000], 100)

    monkeypatch.setattr(reader, "_MOST_OPEN", 2)
    many = prepared(tmp_path / "many", 9000, shard_tokens=1000)
    tokens = ShardTokens(many, verify(many), "train")
    whole = np.concatenate([np.fromfile(f, "<u2") for f in sorted(many.glob("train-*.bin"))])
    starts = np.random.default_rng(0).integers(0, whole.size - 1500, 200).tolist()
    rows = tokens.rows(starts, 1500)
    assert all(np.array_equal(r, whole[s : s + 1500]) for r, s in zip(rows, starts, strict=True))
    (many / "train-00000_00003.bin").unlink()
    with pytest.raises(DataError, match=r"train-00000_00003.bin is missing; .*--force"):
        tokens.rows(starts, 1500)


def test_error_of_a_loader_worker_is_one_line(shards: Path) -> None:
    data = TokenData(TokenShards(path=str(shards)), workers=1)
    share = Share(rank=0, data_ranks=1, per_device=4, accumulation=1)
    data.bind(share=share, sequence=64, seed=1, steps_total=10**6, pin_memory=False)
    batches = iter(data.train_dataloader())
    next(batches)
    os.truncate(shards / "train-00000.bin", 0)
    with pytest.raises(DataError, match=r"^[^\n]*train-00000.bin has 0 bytes[^\n]*$"):
        list(batches)


@pytest.mark.distributed
def test_shard_that_shrinks_ends_all_ranks(
    shards: Path, tmp_path: Path, fork_server: ForkServer
) -> None:
    config = tiny(
        tmp_path / "run",
        steps=100_000,
        data__source=part("TokenShards", path=str(shards)),
        trainer__strategy="ddp",
    )
    metrics, log = tmp_path / "run" / "metrics.jsonl", tmp_path / "log.txt"

    def shrink() -> None:
        while not metrics.exists() or not any(r.get("step", 0) > 2 for r in read_lines(metrics)):
            time.sleep(0.01)
        os.truncate(shards / "train-00000.bin", 0)

    threading.Thread(target=shrink, daemon=True).start()
    codes = fork_server.run("fit", "-c", str(write(tmp_path / "c.yaml", config)), ranks=2, log=log)
    errors = [line for line in log.read_text().splitlines() if "error" in line]
    assert 2 in codes  # whichever rank read first; it may be another's failure that ends the rest
    assert 0 not in codes
    assert -signal.SIGBUS not in codes
    assert "train-00000.bin has 0 bytes" in errors[0]
