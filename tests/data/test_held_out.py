"""What is held out, what is left out, and what is said about it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llm_train.data import (
    HashSplit,
    JSONLines,
    TailSplit,
    TextFiles,
    Tokenize,
    TokenShards,
    TrainBPE,
    load_tokenizer,
    prepare,
)
from llm_train.errors import ConfigError, DataError


def lines(path: Path, texts: list[str], field: str = "text") -> JSONLines:
    path.write_text("".join(json.dumps({field: text}) + "\n" for text in texts))
    return JSONLines(paths=[str(path)])


@pytest.fixture
def recipe(tmp_path: Path) -> Tokenize:
    texts = [f"document {number} of many, and it says {number * number}" for number in range(300)]
    return Tokenize(
        corpus=lines(tmp_path / "a.jsonl", texts),
        tokenizer=TrainBPE(vocab_size=300),
        split=HashSplit(fraction=0.1),
        workers=1,
    )


def documents(path: Path, split: str) -> list[str]:
    source, tokenizer = TokenShards(path=str(path)), load_tokenizer(path)
    ids = np.concatenate([np.fromfile(f, "<u2") for f in sorted(path.glob(f"{split}-*.bin"))])
    places = source.documents(split)
    assert places is not None
    starts = places.starts()
    found = [places.find(int(start)) for start in starts]
    assert [place.start for place in found] == starts.tolist()
    assert [place.number for place in found] == list(range(len(places)))
    assert found[-1].stop == ids.size
    return [tokenizer.decode(ids[place.start : place.stop - 1].tolist()) for place in found]


def test_held_out_sets_have_names_and_their_copies_are_not_trained_on(
    recipe: Tokenize, tmp_path: Path
) -> None:
    told = ["something else", "document 7 of many, and it says 49"]
    others = {
        "test": lines(tmp_path / "t.jsonl", told),
        "books": lines(tmp_path / "b.jsonl", ["b"]),
    }
    manifest = prepare(replace(recipe, held_out=others), tmp_path / "tokens", progress=False)
    assert manifest.held_out == ["held_out", "test", "books"]
    assert documents(tmp_path / "tokens", "test") == told
    train = documents(tmp_path / "tokens", "train")
    held_out = documents(tmp_path / "tokens", "held_out")
    assert not set(train) & {*told, *held_out}
    assert len(train) + len(held_out) + manifest.skipped.get("copy of held-out text", 0) == 300
    source = TokenShards(path=str(tmp_path / "tokens"))
    assert source.held_out_sets() == ("held_out", "test", "books")
    assert len(source.held_out_windows(8, "test")) > 1
    with pytest.raises(ConfigError, match=r"held_out.train must be a name"):
        replace(recipe, held_out={"train": recipe.corpus})


def test_a_held_out_set_without_text_or_with_all_of_it_is_refused(
    recipe: Tokenize, tmp_path: Path
) -> None:
    (tmp_path / "empty.txt").touch()
    nothing = lines(tmp_path / "t.jsonl", ["a"], field="content")
    everything = replace(recipe, split=HashSplit(fraction=0.0), held_out={"test": recipe.corpus})
    refused = [
        (replace(recipe, held_out={"test": nothing}), "held_out.test has no text .*it has content"),
        (replace(recipe, corpus=TextFiles(paths=[str(tmp_path / "empty.txt")])), "empty: 1"),
        (everything, "also in a set of .*held_out"),
    ]
    for each, message in refused:
        with pytest.raises(DataError, match=message):
            prepare(each, tmp_path / "tokens", progress=False)


def test_copies_of_a_tail_are_not_trained_on(recipe: Tokenize, tmp_path: Path) -> None:
    texts = [f"line {number} is here" for number in range(50)]
    corpus = lines(tmp_path / "c.jsonl", [texts[48], *texts])
    manifest = prepare(
        replace(recipe, corpus=corpus, split=TailSplit(fraction=0.1)),
        tmp_path / "t",
        progress=False,
    )
    assert manifest.skipped == {"copy of held-out text": 1}
    assert texts[48] not in documents(tmp_path / "t", "train")


def test_nothing_need_be_held_out(recipe: Tokenize, tmp_path: Path) -> None:
    recipe = replace(recipe, split=HashSplit(fraction=0.0))
    assert prepare(recipe, tmp_path / "tokens", progress=False).held_out == []
    assert TokenShards(path=str(tmp_path / "tokens")).held_out_sets() == ()


def test_one_document_is_told_how_to_be_cut(recipe: Tokenize, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("one long text " * 100)
    one = replace(recipe, corpus=TextFiles(paths=[str(tmp_path / "one.txt")]))
    with pytest.raises(DataError, match=r"no held-out text.*class_path: TailSplit") as refused:
        prepare(one, tmp_path / "tokens", progress=False)
    assert "\n" not in str(refused.value)
    cut = replace(one, split=TailSplit(fraction=0.1))
    assert prepare(cut, tmp_path / "tokens", progress=False).held_out == ["held_out"]


def test_skipped_documents_are_an_error_before_anything_is_learnt(
    recipe: Tokenize, tmp_path: Path
) -> None:
    corpus = lines(tmp_path / "wrong.jsonl", ["text"] * 20, field="content")
    with pytest.raises(DataError, match=r"no text .*'text'.*: 20.*wrong.jsonl:1"):
        prepare(replace(recipe, corpus=corpus), tmp_path / "tokens", progress=False)
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write("{\n" * 6)
    expected = r"6 of 306 .*not JSON: 6, the first a.jsonl:301.*max_skipped=0.01.*max_skipped=0.022"
    with pytest.raises(DataError, match=expected):
        prepare(recipe, tmp_path / "tokens", progress=False)
    assert not list(tmp_path.glob("tokens*"))
    manifest = prepare(replace(recipe, max_skipped=0.022), tmp_path / "tokens", progress=False)
    assert manifest.skipped == {"not JSON": 6}
    assert "a.jsonl:301" in manifest.examples["not JSON"]


def test_text_is_compared_by_content(recipe: Tokenize, tmp_path: Path) -> None:
    prepare(recipe, tmp_path / "tokens", progress=False)
    prepare(recipe, tmp_path / "tokens", progress=False, reread=True)
    file = tmp_path / "a.jsonl"
    os.utime(file, (0, 0))
    with pytest.raises(ConfigError, match=r"stamps.*--force"):
        prepare(recipe, tmp_path / "tokens", progress=False)
    prepare(recipe, tmp_path / "tokens", progress=False, reread=True)
    file.write_text(file.read_text().replace("many", "MANY"))
    with pytest.raises(ConfigError, match=r"stamps.*--force"):
        prepare(recipe, tmp_path / "tokens", progress=False)


def test_full_disk_is_one_line(recipe: Tokenize, tmp_path: Path) -> None:
    script = (
        "import resource, sys\n"
        "from llm_train.data import *\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "recipe = Tokenize(corpus=JSONLines(paths=[sys.argv[1]]), split=HashSplit(fraction=0),\n"
        "    tokenizer=Bytes(), workers=1)\n"
        "prepare(recipe, sys.argv[2], progress=False)\n"
    )
    lines(tmp_path / "b.jsonl", ["some text that goes on " * 100] * 20)
    command = [sys.executable, "-c", script, str(tmp_path / "b.jsonl"), str(tmp_path / "tokens")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    last = done.stderr.splitlines()[-1]
    assert "DataError" in last
    assert "File too large; what is finished stays in" in last
