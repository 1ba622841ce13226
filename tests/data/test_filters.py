"""Filters, normalisation and duplicates, against plain implementations."""

from __future__ import annotations

import random
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import pytest

from llm_train.data import (
    Document,
    ExactCopies,
    Filter,
    Filtered,
    KeepCopies,
    Length,
    NearCopies,
    Normalize,
    Skipped,
    TextFiles,
)
from llm_train.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class NoShouting(Filter):
    """What a user may write."""

    def __call__(self, document: Document) -> Document | Skipped:
        if document.text.isupper():
            return Skipped(document.key, "shouting")
        return document


def test_filters_change_and_leave_out(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("Fu\u0308ße!|  |LOUD TEXT|tiny|" + "long " * 50 + "|")
    filters = [Normalize(form="NFC"), Length(least=5, most=100), NoShouting()]
    corpus = Filtered(corpus=TextFiles(paths=[str(path)], separator="|"), filters=filters)
    first, *rest = corpus.read()
    assert first == Document("a.txt#0", unicodedata.normalize("NFC", "Fu\u0308ße!"))
    assert [item[1] for item in rest] == [
        *("shorter than 5 characters", "shouting", "shorter than 5 characters"),
        "longer than 100 characters",
    ]
    assert all(isinstance(item, Skipped) and item.intended for item in rest)
    assert corpus.provenance() == corpus.corpus.provenance()
    path.write_bytes(b"\xff")
    [unread] = corpus.read()
    assert isinstance(unread, Skipped)
    assert not unread.intended
    for wrong in ({"least": 5, "most": 4}, {"least": -1}):
        with pytest.raises(ConfigError, match="least="):
            Length(**wrong)


def words(seed: int, count: int = 200) -> list[str]:
    return [f"w{number}" for number in random.Random(seed).choices(range(5000), k=count)]


def test_copies_are_named_after_the_first() -> None:
    base = words(0)
    texts = {
        "a": " ".join(base),
        "b": " ".join(words(1)),
        "a again": " ".join(base),
        "a, punctuated": ", ".join(base).upper(),
        "a, four words changed": " ".join([*base[:-4], *words(2, 4)]),
        "half of a": " ".join(base[:100] + words(3, 100)),
    }
    documents = [Document(key, text) for key, text in texts.items()]
    assert KeepCopies().survey(iter(documents)) == {}
    assert ExactCopies().survey(iter(documents)) == {"a again": "exact copy"}
    pytest.importorskip("datasketch")
    assert NearCopies(threshold=0.7).survey(iter(documents)) == {
        "a again": "exact copy",
        "a, punctuated": "near copy",
        "a, four words changed": "near copy",
    }
    with pytest.raises(ConfigError, match="threshold="):
        NearCopies(threshold=1.5)
