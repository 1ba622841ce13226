"""A rearranged document is put together again by hand; all else stays in its place."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from llm_train.data import Mixture, RandomTokens
from llm_train.data.base import Ids
from llm_train.data.fill_in_the_middle import FillInTheMiddle
from llm_train.data.token_source import Windows
from llm_train.errors import ConfigError

END, PRE, SUF, MID = 0, 1, 2, 3
WORDS = {"<|endoftext|>": END, "<|fim_prefix|>": PRE, "<|fim_suffix|>": SUF, "<|fim_middle|>": MID}
TOKENIZER = Tokenizer(models.WordLevel(WORDS, "<|endoftext|>")).to_str()


class Rows(Windows):
    """Window i: a document of 12 tokens, its end, one of 9, its end, and the beginning of one."""

    def __len__(self) -> int:
        return 100

    def batch(self, indices: object) -> Ids:
        row = np.array([*range(10, 22), END, *range(30, 39), END, *range(50, 57)], np.uint16)
        return np.tile(row, (np.size(indices), 1))


def filled(rate: float = 0.6, suffix_first: float = 0.5, seed: int = 1) -> Windows:
    settings = FillInTheMiddle(rates={"code": rate}, suffix_first=suffix_first)
    return settings.over("code", Rows(), tokenizer=TOKENIZER, end_of_text=END, order=str(seed))


def restored(document: list[int]) -> tuple[list[int], str]:
    """The text in its order, and which way it was written."""
    if PRE not in document:
        return document, "plain"
    assert document[0] == PRE
    suf, mid = document.index(SUF), document.index(MID)
    assert suf < mid
    prefix, suffix, rest = document[1:suf], document[suf + 1 : mid], document[mid + 1 :]
    if suf == 1:  # an empty prefix of PSM is an SPM whose prefix and middle are one
        return next(((rest[:cut] + suffix + rest[cut:], "spm") for cut in range(len(rest) + 1)
            if sorted(got := rest[:cut] + suffix + rest[cut:]) == got), ([], "broken"))  # fmt: skip
    return prefix + rest + suffix, "psm"


def test_documents_are_rearranged_at_the_rate_and_nothing_is_lost_before_the_end() -> None:
    rows = filled().batch(np.arange(2000))
    ways = []
    for row in rows.tolist():
        first = row[: row.index(END)]
        rest = row[len(first) + 1 :]
        second = rest[: rest.index(END)] if END in rest else []
        for document, text in ((first, range(10, 22)), (second, range(30, 39))):
            if document:
                content, way = restored(document)
                assert content == list(text)
                ways.append(way)
    share = {way: ways.count(way) / len(ways) for way in ("plain", "psm", "spm")}
    assert share["plain"] == pytest.approx(0.4, abs=0.03)
    # Half of 0.6 each; of PSM, a sixth has an empty prefix and looks like SPM.
    assert share["psm"] == pytest.approx(0.25, abs=0.03)
    assert share["spm"] == pytest.approx(0.35, abs=0.03)


def test_a_sample_is_the_same_in_any_batch_and_another_with_another_seed() -> None:
    rows = filled().batch(np.arange(50))
    assert (filled().batch([31, 7]) == rows[[31, 7]]).all()
    assert (filled(seed=2).batch(np.arange(50)) != rows).any()
    assert (filled(rate=0).batch([3]) == Rows().batch([3])).all()
    everywhere = filled(rate=1, suffix_first=1).batch(np.arange(20))
    assert (everywhere[:, :2] == [PRE, SUF]).all()


def test_a_tokenizer_without_the_tokens_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"<\|hole\|>; name three"):
        FillInTheMiddle(middle="<|hole|>").sentinels(TOKENIZER)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        FillInTheMiddle(rates={"code": 2})


def test_a_source_that_does_not_say_where_documents_end_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(RandomTokens, "tokenizer_text", lambda self: TOKENIZER)
    mixture = Mixture(
        sources={"web": RandomTokens(), "code": RandomTokens()},
        fill_in_the_middle=FillInTheMiddle(rates={"web": 0, "code": 0.5}),
    )
    (problem,) = mixture.check()
    assert "rates.code=0.5" in problem
    monkeypatch.setattr(RandomTokens, "end_of_text", lambda self: END)
    assert mixture.check() == []
