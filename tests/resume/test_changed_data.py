"""A run goes on with the data that it was trained on; what changed is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llm_train.data import (
    Change,
    Characters,
    HashSplit,
    Mixture,
    RandomTokens,
    TextFiles,
    Tokenize,
    TokenShards,
    TokenSource,
    prepare,
)
from llm_train.data.module import TokenData
from llm_train.data.sampler import Share
from llm_train.errors import ConfigError
from llm_train.units import Duration


def bound(source: TokenSource) -> TokenData:
    data = TokenData(source)
    share = Share(rank=0, data_ranks=1, per_device=1, accumulation=1)
    data.bind(share=share, sequence=8, seed=1, steps_total=9, pin_memory=False)
    return data


def shards(folder: Path, text: str, **changed: Any) -> TokenShards:
    if not (folder / "text.txt").exists() or (folder / "text.txt").read_text() != text:
        (folder / "text.txt").write_text(text)  # which changes its stamp
    corpus = TextFiles(paths=[str(folder / "text.txt")], separator="\n")
    settings: dict[str, Any] = {
        "corpus": corpus, "tokenizer": Characters(), "split": HashSplit(fraction=0.3)
    }  # fmt: skip
    name = f"tokens{len(list(folder.iterdir()))}"
    prepare(Tokenize(**{**settings, **changed}), folder / name)
    return TokenShards(path=str(folder / name))


def test_the_message_names_what_changed_and_what_did_not(tmp_path: Path) -> None:
    text = "\n".join(f"a line with number {number}" for number in range(60))
    state = bound(shards(tmp_path, text)).position(5)
    bound(shards(tmp_path, text)).restore(state, steps_done=1)
    other = bound(shards(tmp_path, text, split=HashSplit(fraction=0.4)))
    with pytest.raises(ConfigError, match=r"changed: split was .*0\.3.* and is .*0\.4") as caught:
        other.restore(state, steps_done=1)
    assert "the same: corpus, text, tokenizer" in str(caught.value)
    longer = bound(shards(tmp_path, f"{text}\none more"))
    with pytest.raises(ConfigError, match=r"changed: text was .*; point data\.source at the old"):
        longer.restore(state, steps_done=1)


def test_weights_may_change_after_what_was_read() -> None:
    parts: dict[str, TokenSource] = {name: RandomTokens(seed=ord(name)) for name in "ab"}
    state = bound(Mixture(sources=parts, weights={"a": 3, "b": 1})).position(1000)
    with pytest.raises(ConfigError, match=r"changed: weights was .*changes, after") as caught:
        bound(Mixture(sources=parts, weights={"a": 1, "b": 1})).restore(state, steps_done=1)
    tokens = int(str(caught.value).split("after '")[1].split(" ")[0])
    assert 8000 < tokens < 8200
    change = Change(after=Duration(tokens, "tokens"), weights={"b": 1})
    later = bound(Mixture(sources=parts, weights={"a": 3, "b": 1}, changes=[change]))
    later.restore(state, steps_done=1)
    assert later.consumed == 1000
