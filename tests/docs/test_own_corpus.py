"""The page "your own corpus": its four commands train a model, and each of its files parses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from llm_train.cli import load_settings
from llm_train.data import Files, HuggingFace, JSONLines, TextFiles, TokenizerFile
from llm_train.data.tokenize_corpus import Tokenize
from llm_train.testing.fork_server import ForkServer
from tests.docs.test_readme import ROOT, TINY, commands

PAGE = ROOT / "docs/your-own-corpus.md"
BLOCKS = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
SMALL = [*TINY, "--data.recipe.init_args.tokenizer.init_args.vocab_size=300"]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "own.yaml").write_text(BLOCKS[0], "utf-8")
    (tmp_path / "texts").mkdir()
    for number in range(120):
        story = f"Once upon a time there were {number} bears. " * 6
        (tmp_path / "texts" / f"{number}.txt").write_text(story, "utf-8")
    return tmp_path


def test_from_a_folder_to_a_trained_model(fork_server: ForkServer, place: Path) -> None:
    four = [words[1:] for words in commands(PAGE)]
    assert [words[0] for words in four] == ["check", "prepare", "fit", "generate"]
    for words in four:
        small = SMALL if words[0] != "generate" else ["--tokens=5"]
        code, out, err = fork_server.command(*words, *small, folder=place, cwd=place)
        assert code == (words[0] == "check"), f"{words}: {err}"  # there are no tokens yet
    assert out.startswith("Once upon a time")
    _, _, err = fork_server.command(*four[1], *SMALL, folder=place, cwd=place)
    assert "data/own is up to date" in err
    records = (place / "runs/own/metrics.jsonl").read_text("utf-8").splitlines()
    last = {key: value for record in records for key, value in json.loads(record).items()}
    assert last["val/bits_per_byte"] > 0


def test_each_file_is_complete(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    kinds = [TextFiles, TextFiles, TextFiles, JSONLines, Files, Files, HuggingFace, Files]
    for block, kind in zip(BLOCKS[1:], kinds, strict=True):
        Path("overlay.yaml").write_text(block, "utf-8")
        settings = load_settings(["-c", "own.yaml", "-c", "overlay.yaml"])
        recipe = settings.data.recipe
        assert isinstance(recipe, Tokenize)
        assert isinstance(recipe.corpus, kind)
    assert isinstance(recipe.tokenizer, TokenizerFile)
