"""Which library encodes: ids equal to those of ``tokenizers``, or ``tokenizers`` itself."""

import importlib.util
import logging
from pathlib import Path

import numpy as np
import pytest

from llm_train.data import Characters, Texts, TrainBPE, load_tokenizer
from llm_train.data.tokenizer.encoders import choose_encoder
from tests.data.test_tokenizer import WEIRD, texts

SAMPLE = ["the cat sat on the mat " * 20, *WEIRD, "", "\n" * 300]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    learnt: Texts = texts(SAMPLE)
    TrainBPE(vocab_size=400).build(learnt).save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_the_fast_library_gives_the_same_ids(folder: Path) -> None:
    pytest.importorskip("fastokens")
    encoder = choose_encoder(folder, SAMPLE)
    assert encoder.name.startswith("fastokens ")
    tokenizer = load_tokenizer(folder)
    for text, found in zip(SAMPLE, encoder.encode(SAMPLE), strict=True):
        assert found.tolist() == tokenizer.encode(text, add_special_tokens=False).ids
        assert found.dtype == np.int32
    assert encoder.encode([]) == []


def test_fastokens_is_recommended_only_where_it_can_help(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    Characters().build(texts(["abc"])).save(str(folder / "characters.json"))
    for name, helps in (("tokenizer.json", True), ("characters.json", False)):
        with caplog.at_level(logging.INFO):
            choose_encoder(folder / name, ["abc"])
        assert ("pip install fastokens" in caplog.text) == helps
        caplog.clear()


def test_a_tokenizer_that_only_the_reference_reads(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from tokenizers import normalizers

    tokenizer = load_tokenizer(folder)
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.save(str(folder / "tokenizer.json"))
    with caplog.at_level(logging.INFO):
        encoder = choose_encoder(folder, SAMPLE)
    assert encoder.name.startswith("tokenizers ")
    assert "fastokens" in caplog.text
    assert encoder.encode(["ﬁ"])[0].tolist() == encoder.encode(["fi"])[0].tolist()
