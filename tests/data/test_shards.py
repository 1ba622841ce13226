import json
import pickle
import shutil
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llm_train.data import HashSplit, TextFiles, Tokenize, TokenShards, TrainBPE, prepare
from llm_train.data.base import NO_TOKEN
from llm_train.data.reader import ShardTokens
from llm_train.data.shards import ShardWriter, dtype_for, verify
from llm_train.data.token_manifest import Manifest
from llm_train.errors import DataError


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("corpus")
    for number in range(40):
        words = " ".join(f"word{(number * i) % 97}" for i in range(50 + number))
        (directory / f"{number:02d}.txt").write_text(f"Document {number}\n{words}\n")
    return directory


def prepared(corpus: Path, path: Path, shard_tokens: int, salt: str = "") -> Path:
    recipe = Tokenize(
        corpus=TextFiles(paths=[str(corpus)]),
        tokenizer=TrainBPE(vocab_size=300),
        split=HashSplit(fraction=0.2, salt=salt),
        shard_tokens=shard_tokens,
    )
    prepare(recipe, path, progress=False)
    return path


@pytest.fixture(scope="module")
def pristine(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(corpus, tmp_path_factory.mktemp("tokens") / "shards", 1000)


@pytest.fixture
def shards(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "shards"))


def test_reader_joins_shards(shards: Path) -> None:
    manifest = Manifest.load(shards)
    files = sorted(shards.glob("train-*.bin"))
    assert len(files) > 3
    everything = np.concatenate([np.fromfile(file, "<u2") for file in files])
    tokens = ShardTokens(shards, manifest, "train")
    assert len(tokens) == everything.size == manifest.splits["train"].tokens
    for start, length in ((0, 1), (999, 2), (0, everything.size), (990, 2020), (1000, 1000)):
        [found] = tokens.rows([start], length)
        assert np.array_equal(found, everything[start : start + length])


def test_every_shard_but_the_last_is_full(shards: Path) -> None:
    for split in Manifest.load(shards).splits.values():
        sizes = [shard.bytes // 2 for shard in split.shards]
        assert set(sizes[:-1]) <= {1000}
        assert 0 < sizes[-1] <= 1000


@pytest.mark.parametrize("vocab_size", [2**16, 2**16 + 1])
def test_writer_keeps_the_largest_id(tmp_path: Path, vocab_size: int) -> None:
    dtype = dtype_for(vocab_size)
    with ShardWriter(tmp_path, "train", vocab_size, shard_tokens=2) as writer:
        writer.add(np.array([0, vocab_size - 1, 1], dtype=np.int32))
    stored = np.dtype(dtype).newbyteorder("<")
    shards = writer.stored().shards
    read = np.concatenate([np.fromfile(tmp_path / shard.name, stored) for shard in shards])
    assert read.tolist() == [0, vocab_size - 1, 1]
    assert [shard.bytes for shard in shards] == [2 * read.itemsize, read.itemsize]


def test_source_windows_hold_the_held_out_tokens(shards: Path) -> None:
    source = TokenShards(path=str(shards))
    assert source.check() == []
    windows = source.held_out_windows(64)
    rows = windows.batch(np.arange(len(windows)))
    stored = np.concatenate([np.fromfile(f, "<u2") for f in sorted(shards.glob("held_out-*.bin"))])
    targets = rows[:, 1:]
    assert np.array_equal(targets[targets != NO_TOKEN], stored[1:])
    assert rows[0, 0] == stored[0]
    manifest = Manifest.load(shards)
    lengths = source.token_bytes()
    assert lengths is not None
    assert lengths[stored].sum() == manifest.splits["held_out"].text_bytes
    assert source.vocab_size() == manifest.vocab_size == 300
    assert source.description()["held_out_tokens"] == stored.size


def test_windows_pickle_without_their_tokens(shards: Path) -> None:
    windows = TokenShards(path=str(shards)).train_windows(64, 1)
    before = windows.batch(np.arange(10))
    pickled = pickle.dumps(windows)
    assert len(pickled) < 2000
    assert np.array_equal(pickle.loads(pickled).batch(np.arange(10)), before)


def test_fingerprint_follows_the_tokens(shards: Path, corpus: Path, tmp_path: Path) -> None:
    others = prepared(corpus, tmp_path / "a", 1000), prepared(corpus, tmp_path / "b", 1000, "other")
    first, same, other = (TokenShards(path=str(p)).fingerprint() for p in (shards, *others))
    assert first == same
    assert first != other


def test_missing_directory_says_what_to_run(tmp_path: Path) -> None:
    source = TokenShards(path=str(tmp_path / "none"))
    [problem] = source.check()
    assert "llm-train prepare -c" in problem
    assert "data.source.path" in problem
    with pytest.raises(DataError, match="llm-train prepare"):
        source.vocab_size()


def test_truncated_or_missing_shard_is_named(shards: Path) -> None:
    victim = shards / "train-00000_00001.bin"
    victim.write_bytes(victim.read_bytes()[:-2])
    with pytest.raises(
        DataError, match=r"train-00000_00001\.bin has 1998 bytes, its manifest says 2000"
    ):
        TokenShards(path=str(shards)).train_windows(8, 0)
    assert "train-00000_00001.bin" in TokenShards(path=str(shards)).check()[0]
    victim.unlink()
    with pytest.raises(DataError, match=r"train-00000_00001\.bin is missing"):
        verify(shards)


@pytest.mark.parametrize("name", ["train-00000_00002.bin", "tokenizer.json", "token_bytes.npy"])
def test_flipped_bit_is_found_by_checksums(shards: Path, name: str) -> None:
    assert verify(shards, checksums=True) == Manifest.load(shards)
    victim = shards / name
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    verify(shards)
    with pytest.raises(DataError, match=f"{name} is damaged"):
        verify(shards, checksums=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        *((content, r"manifest\.json is not a manifest.*--force") for content in ("{", "[]", "{}")),
        *((f'{{"version": {n}}}', f"format version {n}.*--force") for n in (1, 99)),
    ],
)
def test_damaged_manifest_is_named(shards: Path, content: str, message: str) -> None:
    (shards / "manifest.json").write_text(content)
    with pytest.raises(DataError, match=message):
        Manifest.load(shards)


def test_manifest_with_a_field_missing(shards: Path) -> None:
    plain = json.loads((shards / "manifest.json").read_text())
    del plain["splits"]["train"]["tokens"]
    (shards / "manifest.json").write_text(json.dumps(plain))
    with pytest.raises(DataError, match="not a manifest"):
        verify(shards)


def test_manifest_with_wrong_types(shards: Path) -> None:
    path = shards / "manifest.json"
    good = json.loads(path.read_text())
    split = good["splits"]["train"]
    del good["crc32"]
    forged = {
        "dtype=float32": {"dtype": "float32"},
        "dtype=17": {"dtype": 17},
        "splits.train.tokens=many": {
            "splits": {**good["splits"], "train": {**split, "tokens": "many"}}
        },
        "is not the name of a file": {"others": [{**good["others"][0], "name": "../escape"}]},
        r"'\\\\x00' is not the name": {"others": [{**good["others"][0], "name": "\0"}]},
        "skipped=": {"skipped": [1]},
    }
    for message, values in forged.items():
        plain = {**good, **values}
        crc32 = zlib.crc32(json.dumps(plain, sort_keys=True).encode())
        forgeries = {
            "own checksum": {**plain, "crc32": crc32 ^ 1},
            message: {**plain, "crc32": crc32},
        }
        for expected, content in forgeries.items():
            path.write_text(json.dumps(content))
            with pytest.raises(DataError, match=f"{expected}.*; prepare again with --force"):
                verify(shards)
    path.write_text("[" * 100_000)
    with pytest.raises(DataError, match="prepare again with --force"):
        verify(shards)


def test_byte_lengths_of_unknown_origin(shards: Path) -> None:
    np.save(shards / "token_bytes.npy", np.array([object()]), allow_pickle=True)
    replace(Manifest.load(shards), others=[]).save(shards)  # without the file's checksum
    with pytest.raises(DataError, match=r"token_bytes\.npy .*; prepare again with --force"):
        TokenShards(path=str(shards)).token_bytes()
