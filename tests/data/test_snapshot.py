"""What is finished of a preparation can be trained on while the rest goes on."""

import json
from pathlib import Path

import numpy as np
import pytest

from llm_train.data import (
    Characters,
    HashSplit,
    JSONLines,
    Prepared,
    Tokenize,
    TokenShards,
    prepare,
)
from llm_train.data.base import TRAIN
from llm_train.data.encode_unit import StoredUnit, unit_file
from llm_train.data.shards import verify
from llm_train.data.snapshot import snapshot
from llm_train.errors import ConfigError, DataError


def test_a_snapshot_of_finished_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        lines = [json.dumps({"text": f"{number} text {n} " * 30}) for n in range(200)]
        (tmp_path / f"{number}.jsonl").write_text("\n".join(lines))
    monkeypatch.setattr("llm_train.data.corpus.files.UNIT_BYTES", 60_000)  # a file each
    recipe = Tokenize(
        corpus=JSONLines(paths=[str(tmp_path / f"{n}.jsonl") for n in range(3)]),
        tokenizer=Characters(),
        split=HashSplit(fraction=0.1),
        workers=1,
    )
    units = recipe.tasks()
    assert len(units) == 3
    target = tmp_path / "tokens"
    with pytest.raises(DataError, match="nothing that is finished"):
        snapshot(recipe, target, tmp_path / "first")
    with monkeypatch.context() as patched:
        patched.setattr(StoredUnit, "save", _stops_after(len(units) - 1, StoredUnit.save))
        with pytest.raises(DataError, match="full"):
            prepare(recipe, target, progress=False)
    snapshot(recipe, target, tmp_path / "first")
    with pytest.raises(ConfigError, match="exists"):
        snapshot(recipe, target, tmp_path / "first")
    verify(tmp_path / "first", checksums=True)
    first = TokenShards(path=str(tmp_path / "first"))
    assert first.check() == []
    before = first.train_windows(64, 1).batch(np.arange(50))
    prepare(recipe, target, progress=False)
    whole = TokenShards(path=str(target))
    tokens = len(first._tokens(TRAIN))
    ours, theirs = (source._tokens(TRAIN).rows([0], tokens)[0] for source in (first, whole))
    assert np.array_equal(ours, theirs)
    assert np.array_equal(first.train_windows(64, 1).batch(np.arange(50)), before)
    assert first.fingerprint() != whole.fingerprint()
    assert len(first.documents()) < len(whole.documents())
    with pytest.raises(ConfigError, match="prepared differently"):
        prepare(recipe, tmp_path / "first", progress=False)
    with pytest.raises(ConfigError, match="Prepared"):
        snapshot(Prepared(), target, tmp_path / "second")


def test_a_snapshot_has_held_out_sets_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        lines = [json.dumps({"text": f"{number} text {n} " * 30}) for n in range(200)]
        (tmp_path / f"{number}.jsonl").write_text("\n".join(lines))
    monkeypatch.setattr("llm_train.data.corpus.files.UNIT_BYTES", 60_000)  # a file each
    corpora = [JSONLines(paths=[str(tmp_path / f"{number}.jsonl")]) for number in range(3)]
    recipe = Tokenize(
        corpus=JSONLines(paths=[*corpora[0].paths, *corpora[1].paths]),
        tokenizer=Characters(),
        split=HashSplit(fraction=0.0),
        held_out={"test": corpora[2]},
        workers=1,
    )
    target = tmp_path / "tokens"

    def save(unit: StoredUnit, directory: Path, number: int, save=StoredUnit.save) -> None:  # type: ignore[no-untyped-def]
        if number in refused:
            raise DataError("the disk is full")
        save(unit, directory, number)

    monkeypatch.setattr(StoredUnit, "save", save)
    for refused in ((0, 1), (1,)):  # the held-out set is number 2, and comes first
        with pytest.raises(DataError, match="full"):
            prepare(recipe, target, progress=False)
        if 0 in refused:
            with pytest.raises(DataError, match="nothing of train is finished"):
                snapshot(recipe, target, tmp_path / "first")
    snapshot(recipe, target, tmp_path / "first")
    first = TokenShards(path=str(tmp_path / "first"))
    assert first.held_out_sets() == ("test",)
    assert [len(first.documents(name)) for name in ("train", "test")] == [200, 200]


def _stops_after(units: int, save):  # type: ignore[no-untyped-def]
    def stopping(unit: StoredUnit, directory: Path, number: int) -> None:
        if number >= units:
            raise DataError("the disk is full")
        save(unit, directory, number)
        assert unit_file(directory, number).exists()

    return stopping
