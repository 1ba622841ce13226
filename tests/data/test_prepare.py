import filecmp
import gzip
import json
import logging
import lzma
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from tokenizers import normalizers

from llm_train.data import (
    Characters,
    HashSplit,
    Prepared,
    StandardLibrary,
    TailSplit,
    TextFiles,
    Tokenize,
    TokenizerFile,
    TokenShards,
    TrainBPE,
    load_tokenizer,
    prepare,
)
from llm_train.data.recipe import recipe_dict, recipe_differences
from llm_train.data.shards import verify
from llm_train.data.sharing import Claims
from llm_train.data.token_manifest import Manifest
from llm_train.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("corpus")
    for number in range(600):  # fills several batches
        words = " ".join(f"wörd{(number * i) % 89}" for i in range(20))
        (directory / f"{number:03d}.txt").write_text(f"Document {number} 👩\n{words}\n")
    (directory / "empty.txt").touch()
    (directory / "latin.txt").write_bytes(b"\xff")
    return directory


@pytest.fixture(scope="module")
def recipe(corpus: Path) -> Tokenize:
    return Tokenize(
        corpus=TextFiles(paths=[str(corpus)]),
        tokenizer=TrainBPE(vocab_size=320),
        split=HashSplit(fraction=0.1),
        workers=1,
    )


@pytest.fixture(scope="module")
def prepared(recipe: Tokenize, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the recipe gives; nothing in it is changed."""
    path = tmp_path_factory.mktemp("prepared") / "tokens"
    prepare(recipe, path, progress=False)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokens"


def of_its_own(recipe: Tokenize, corpus: Path) -> Tokenize:
    """The same recipe on another copy of the corpus."""
    return replace(recipe, corpus=TextFiles(paths=[str(corpus)]))


def files_of(name: str, corpus: Path, recipe: Tokenize) -> list[Path]:
    assert isinstance(recipe.split, HashSplit)
    files = sorted(corpus.glob("[0-9]*"))
    digests = [sha256(file.read_bytes()).digest()[:16] for file in files]
    sides = map(recipe.split.held_out, digests)
    return [f for f, held_out in zip(files, sides, strict=True) if held_out == (name == "held_out")]


def stored(path: Path, split: str) -> np.ndarray:
    return np.concatenate([np.fromfile(file, "<u2") for file in sorted(path.glob(f"{split}-*"))])


def test_tokens_decode_to_the_corpus(recipe: Tokenize, corpus: Path, prepared: Path) -> None:
    manifest = Manifest.load(prepared)
    tokenizer = load_tokenizer(prepared)
    for name in ("train", "held_out"):
        files = files_of(name, corpus, recipe)
        ids = stored(prepared, name)
        documents = np.split(ids, np.flatnonzero(ids == manifest.end_of_text) + 1)
        assert documents.pop().size == 0
        assert [tokenizer.decode(d[:-1].tolist()) for d in documents] == [
            file.read_text() for file in files
        ]
        described = manifest.splits[name]
        assert described.documents == len(files)
        assert described.tokens == ids.size
        assert described.text_bytes == sum(file.stat().st_size for file in files)
        assert described.decoded_bytes == described.text_bytes
    assert manifest.skipped == {"empty": 1, "not UTF-8": 1}


def test_references_are_the_compressors(recipe: Tokenize, corpus: Path, prepared: Path) -> None:
    manifest = Manifest.load(prepared)
    data = b"".join(file.read_bytes() for file in files_of("held_out", corpus, recipe))
    assert manifest.references == {
        "gzip_9": len(gzip.compress(data, 9)) * 8 / len(data),
        "xz_9": len(lzma.compress(data, preset=9)) * 8 / len(data),
    }


def test_compressors_stop_at_the_limit(
    recipe: Tokenize, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm_train.data.merging.REFERENCE_BYTES", 10)
    none = {"gzip_9": None, "xz_9": None}
    assert prepare(recipe, path, progress=False).references == none


def test_workers_do_not_change_a_byte(recipe: Tokenize, prepared: Path, tmp_path: Path) -> None:
    names = sorted(file.name for file in prepared.iterdir())
    assert "manifest.json" in names
    for workers in (2, 5):
        other = tmp_path / f"{workers}"
        prepare(replace(recipe, workers=workers), other, progress=False)
        assert sorted(file.name for file in other.iterdir()) == names
        same, _, _ = filecmp.cmpfiles(prepared, other, names, shallow=False)
        assert sorted(same) == names


def test_environment_is_left_as_found(
    recipe: Tokenize, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    prepare(recipe, tmp_path / "a", progress=False)
    assert "TOKENIZERS_PARALLELISM" not in os.environ


def test_lines_of_forked_processes_stand_above_the_bar(
    recipe: Tokenize, path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    handler, package = logging.StreamHandler(), logging.getLogger("llm_train.data")
    logging.getLogger().addHandler(handler)
    package.setLevel(logging.INFO)
    try:
        prepare(recipe, path)
    finally:
        logging.getLogger().removeHandler(handler)
        package.setLevel(logging.NOTSET)
    assert capfd.readouterr().err.count("\rencoding with ") == 1  # the bar was wiped away


def test_preparing_again_is_no_work(
    recipe: Tokenize, caplog: pytest.LogCaptureFixture, prepared: Path
) -> None:
    first, inode = Manifest.load(prepared), prepared.stat().st_ino
    with caplog.at_level(logging.INFO, "llm_train"):
        assert prepare(replace(recipe, workers=2), prepared, progress=False) == first
    assert "up to date" in caplog.text
    assert prepared.stat().st_ino == inode


def test_another_recipe_is_refused_and_forced(
    recipe: Tokenize, prepared: Path, tmp_path: Path, path: Path
) -> None:
    shutil.copytree(prepared, path)
    other = replace(recipe, tokenizer=TrainBPE(vocab_size=300), split=TailSplit(fraction=0.1))
    assert recipe_differences(path, recipe) == []
    assert recipe_differences(path, other) == [
        "tokenizer.vocab_size: 320 -> 300",
        "split: HashSplit -> TailSplit",
    ]
    with pytest.raises(ConfigError, match=r"vocab_size: 320 -> 300; split: .*--force"):
        prepare(other, path, progress=False)
    assert prepare(other, path, force=True, progress=False).vocab_size == 300
    assert recipe_differences(path, other) == []
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["tokens"]


def test_changed_text_is_not_up_to_date(
    recipe: Tokenize, corpus: Path, tmp_path: Path, path: Path
) -> None:
    corpus = Path(shutil.copytree(corpus, tmp_path / "corpus"))
    recipe = of_its_own(recipe, corpus)
    prepare(recipe, path, progress=False)
    (corpus / "000.txt").write_text("longer than it was: " * 50)
    with pytest.raises(ConfigError, match=r"stamps: .*--force"):
        prepare(recipe, path, progress=False)
    assert recipe_differences(path, recipe) == []


def test_tokens_without_their_text_are_usable(
    recipe: Tokenize, corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, path: Path
) -> None:
    corpus = Path(shutil.copytree(corpus, tmp_path / "corpus"))
    recipe = of_its_own(recipe, corpus)
    first = prepare(recipe, path, progress=False)
    corpus.rename(tmp_path / "elsewhere")
    assert prepare(recipe, path, progress=False) == first
    assert "cannot tell whether the text has changed" in caplog.text


def test_force_never_removes_anything_else(recipe: Tokenize, path: Path) -> None:
    path.mkdir()
    (path / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="holds no prepared tokens"):
        prepare(recipe, path, force=True, progress=False)
    assert (path / "thesis.txt").exists()


def test_prepared_refuses(prepared: Path, path: Path) -> None:
    with pytest.raises(ConfigError, match="made elsewhere"):
        prepare(Prepared(), path)
    assert not path.exists()
    assert recipe_differences(prepared, Prepared()) == []


def test_an_early_error_has_no_bar_before_it(
    recipe: Tokenize, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.txt").touch()
    failing = replace(recipe, corpus=TextFiles(paths=[str(tmp_path / "empty.txt")]))
    with pytest.raises(DataError, match="the corpus has no text"):
        prepare(failing, tmp_path / "tokens")
    assert capfd.readouterr().err == ""


def test_an_error_leaves_nothing(recipe: Tokenize, tmp_path: Path) -> None:
    failing = replace(recipe, split=HashSplit(fraction=1e-12))
    with pytest.raises(DataError, match=r"no held-out text.*TailSplit"):
        prepare(failing, tmp_path / "new/tokens", progress=False)
    assert list((tmp_path / "new").iterdir()) == []


INTERRUPTED = """
import sys, time
from pathlib import Path
from collections.abc import Iterator
from llm_train.data import *

class Stuck(Corpus):
    def units(self):
        return [Unit(name="all", size=0, stamp="")]
    def documents(self, unit):
        for number in range(4000):
            yield Document(str(number), f"document {number} of many")
        if list(Path(sys.argv[1] + ".partial").glob(".unit-*.claim")):
            print("stuck", flush=True)
            time.sleep(600)

import dataclasses
Stuck = dataclasses.dataclass(frozen=True, kw_only=True)(Stuck)
prepare(Tokenize(corpus=Stuck(), tokenizer=TrainBPE(vocab_size=300), split=HashSplit(fraction=0.1),
                 workers=1), sys.argv[1], progress=False)
"""


def test_a_killed_prepare_leaves_nothing_that_looks_complete(
    recipe: Tokenize, tmp_path: Path, path: Path
) -> None:
    staged = tmp_path / "tokens.partial"
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "stuck\n"
        with pytest.raises(ConfigError, match="another process is preparing"):
            prepare(recipe, path, progress=False)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert not (staged / "manifest.json").exists()
    assert not path.exists()
    assert TokenShards(path=str(path)).check()
    prepare(recipe, path, progress=False)
    assert not staged.exists()
    verify(path, checksums=True)


def test_a_slow_start_of_the_same_recipe_is_waited_for(recipe: Tokenize, path: Path) -> None:
    staged = path.with_name("tokens.partial")
    staged.mkdir()
    claims = Claims(staged)
    assert claims.take("recipe")  # by one that has not yet written which recipe it follows
    with ThreadPoolExecutor() as pool:
        other = pool.submit(prepare, recipe, path, progress=False)
        time.sleep(1.5)
        claims.drop("recipe")
        other.result(60)
    verify(path, checksums=True)


def test_characters_of_one_file_as_published(tmp_path: Path, path: Path) -> None:
    text = "First Citizen:\nBefore we proceed any further, hear me speak.\n" * 20
    (tmp_path / "input.txt").write_text(text)
    recipe = Tokenize(
        corpus=TextFiles(paths=[str(tmp_path / "input.txt")]),
        tokenizer=Characters(),
        split=TailSplit(fraction=0.1),
    )
    manifest = prepare(recipe, path, progress=False)
    alphabet = sorted(set(text))
    cut = int(0.9 * len(text))
    assert manifest.vocab_size == len(alphabet)
    assert manifest.end_of_text == -1
    assert stored(path, "train").tolist() == [alphabet.index(c) for c in text[:cut]]
    assert stored(path, "held_out").tolist() == [alphabet.index(c) for c in text[cut:]]
    assert manifest.splits["held_out"].text_bytes == len(text) - cut


def test_a_tokenizer_that_changes_its_input_is_reported(
    recipe: Tokenize, prepared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = load_tokenizer(prepared)
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    lossy = replace(recipe, tokenizer=TokenizerFile(path=str(tmp_path / "tokenizer.json")))
    manifest = prepare(lossy, tmp_path / "second", progress=False)
    train = manifest.splits["train"]
    assert train.decoded_bytes < train.text_bytes
    assert "changes its input" in caplog.text


def test_recipe_as_plain_values(recipe: Tokenize, corpus: Path) -> None:
    plain = recipe_dict(recipe)
    assert plain == {
        "class_path": "Tokenize",
        "corpus": {"class_path": "TextFiles", "paths": [str(corpus)], "separator": ""},
        "tokenizer": {
            "class_path": "TrainBPE",
            "vocab_size": 320,
            "min_frequency": 2,
            "sample_bytes": 0,
        },
        "split": {"class_path": "HashSplit", "fraction": 0.1, "salt": ""},
        "shard_tokens": 100_000_000,
    }
    assert recipe_dict(replace(recipe, workers=7)) == plain
    assert recipe_dict(replace(recipe, shard_tokens=7)) != plain
    assert json.loads(json.dumps(plain)) == plain


def test_a_class_from_elsewhere_is_recorded_with_its_module() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Other(StandardLibrary):
        depth: int = 1

    recipe = Tokenize(corpus=Other(), tokenizer=TrainBPE(), split=HashSplit())
    name = recipe_dict(recipe)["corpus"]["class_path"]
    assert name.startswith(__name__)
    assert name.endswith("Other")


@pytest.mark.parametrize(("field", "value"), [("workers", -1), ("shard_tokens", 0)])
def test_tokenize_refuses_nonsense(field: str, value: int) -> None:
    parts = {"corpus": StandardLibrary(), "tokenizer": TrainBPE(), "split": HashSplit()}
    with pytest.raises(ConfigError, match=f"{field}={value} must be at least"):
        Tokenize(**parts, **{field: value})


@pytest.mark.slow
def test_standard_library_from_end_to_end(path: Path) -> None:
    recipe = Tokenize(
        corpus=StandardLibrary(),
        tokenizer=TrainBPE(vocab_size=4096),
        split=HashSplit(fraction=0.05),
    )
    manifest = prepare(recipe, path, progress=False)
    train, held_out = manifest.splits["train"], manifest.splits["held_out"]
    assert manifest.vocab_size == 4096
    assert 0.02 < held_out.text_bytes / (train.text_bytes + held_out.text_bytes) < 0.1
    assert 3.0 < train.text_bytes / train.tokens < 4.0
    assert 1.5 < manifest.references["gzip_9"] < 2.3
    assert 1.2 < manifest.references["xz_9"] < 1.9
    verify(path, checksums=True)
