"""Shares hold over every prefix, whatever they are and however they change; places by index."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from llm_train.data import Change, Mixture, RandomTokens
from llm_train.data.apportion import LIMIT, Apportionment, Shares, whole_shares
from llm_train.data.module import TokenData
from llm_train.data.sampler import Share
from llm_train.errors import ConfigError
from llm_train.testing.command import refused, run
from llm_train.testing.configs import part, tiny, write
from llm_train.units import Duration

WEIGHTS = {"web": 0.7, "code": 0.2, "books": 0.1}


def sources(**more: Any) -> dict[str, Any]:
    return {
        name: RandomTokens(vocabulary=50, length=1000 * (seed + 1), seed=seed)
        for seed, name in enumerate(WEIGHTS)
    } | more


def change(tokens: int, **weights: float) -> Change:
    return Change(after=Duration(tokens, "tokens"), weights=weights)


def asked(stages: Sequence[Shares], samples: int) -> npt.NDArray[np.float64]:
    """(samples + 1, sources) by adding shares up."""
    each = np.zeros((samples, len(stages[0].counts)))
    for stage in stages:
        each[stage.first :] = np.array(stage.counts) / sum(stage.counts)
    return np.concatenate([np.zeros((1, each.shape[1])), np.cumsum(each, axis=0)])


def furthest(stages: Sequence[Shares], samples: int) -> float:
    """The most that any prefix has too many or too few of a source; compares all the rest."""
    order = Apportionment(stages)
    kinds = len(stages[0].counts)
    found, numbers = order.places(np.arange(samples))
    taken = found[:, None] == np.arange(kinds)
    counts = np.concatenate([np.zeros((1, kinds)), np.cumsum(taken, axis=0)])
    assert (numbers == counts[np.arange(samples), found]).all()
    for prefix in (0, 1, samples // 2, samples):
        assert (order.counts(prefix) == counts[prefix]).all()
    return float(np.abs(counts - asked(stages, samples)).max())


def test_shares_hold_over_every_prefix_whatever_they_are() -> None:
    random = np.random.default_rng(1)
    for kinds in (1, 2, 3, 5, 8, 20):
        for _ in range(4):
            first, stages = 0, []
            for length in (random.integers(1, 300), random.integers(1, 1500), 0):
                weights = (10.0 ** random.uniform(-2, 0, kinds)).round(2) * random.integers(0, 9)
                weights[random.integers(kinds)] += 1
                counts = whole_shares(weights.round(1).tolist())
                stages.append(Shares(first, counts))
                first += int(length)
            assert furthest(stages, 2500) < 1


def test_a_million_samples_and_a_place_far_away() -> None:
    stages = [Shares(0, whole_shares([67, 15, 4.5, 4.5, 4.5, 2.5, 2])), Shares(600_001, (1,) * 7)]
    assert furthest(stages, 1_000_000) < 1
    order = Apportionment(stages)
    far = np.array([10**15, 10**15 + 1])
    found, numbers = order.places(far)
    before, after = order.counts(10**15), order.counts(10**15 + 2)
    assert (numbers == before[found]).all()
    assert (after - before).sum() == 2
    assert abs(order.counts(10**15) - 10**15 / 7).max() < 1_000_000


def test_shares_that_are_no_small_fractions_are_rounded_once() -> None:
    assert whole_shares([0.1, 0.2]) == (1, 2)
    assert whole_shares([3, 0, 6]) == (1, 0, 2)
    odd = whole_shares([1 / 3 + 1e-9, 0.2, 1e-12])
    assert sum(odd) == LIMIT
    assert odd[2] == 1
    assert odd[0] / odd[1] == pytest.approx(5 / 3, rel=1e-4)


def test_each_source_goes_its_own_way_and_changes_at_the_exact_token() -> None:
    parts = sources()
    mixture = Mixture(sources=parts, weights=WEIGHTS, changes=[change(8 * 500, code=1)])
    windows = mixture.train_windows(8, seed=3)
    found, numbers = mixture.order(8).places(np.arange(700))
    alone = [source.train_windows(8, seed=3) for source in parts.values()]
    expected = [alone[s].batch([n])[0] for s, n in zip(found, numbers, strict=True)]
    assert (windows.batch(np.arange(700)) == np.array(expected)).all()
    assert (pickle.loads(pickle.dumps(windows)).batch([650, 3]) == windows.batch([650, 3])).all()
    assert np.bincount(found[:500]).tolist() == [350, 100, 50]
    assert set(found[500:].tolist()) == {1}
    assert mixture.realised(500, 8)["data/web/share"] == 0.7
    assert mixture.realised(500, 8)["data/code/epochs"] == 100 * 8 / 2000


@pytest.mark.parametrize(
    ("settings", "counts"),
    [
        ({}, (1, 1, 1)),
        ({"unit": "epochs"}, (1, 2, 3)),
        ({"unit": "epochs", "weights": {"web": 3, "books": 1}}, (1, 0, 1)),
        ({"weights": {"web": 4, "code": 1, "books": 1}, "temperature": 2}, (2, 1, 1)),
    ],
)
def test_weights_are_shares_or_passes(settings: dict[str, Any], counts: tuple[int, ...]) -> None:
    mixture = Mixture(sources=sources(), **settings)
    assert mixture.shares(mixture.weights, 8) == counts


class Padded(RandomTokens):
    """Packed into windows with room for twice its tokens."""

    def window_facts(self, sequence: int) -> dict[str, str | int | float]:
        return {"packed_windows": 2 * self.length // sequence}


def test_a_pass_over_packed_documents_counts_their_windows() -> None:
    both = {"plain": RandomTokens(length=2000), "padded": Padded(length=2000)}
    mixture = Mixture(sources=both, unit="epochs")
    assert mixture.shares({}, 8) == (1, 2)
    realised = mixture.realised(750, 8)
    assert [realised[f"data/{name}/epochs"] for name in both] == [1.0, 1.0]
    assert mixture.window_facts(8)["padded"] == "0.666667 of the samples; 2000 tokens"


def test_a_recipe_that_no_source_reads_is_refused(tmp_path: Path) -> None:
    mixed = part("Mixture", sources={"web": part("RandomTokens", vocabulary=50)})
    made_of = {"corpus": part("StandardLibrary"), "tokenizer": part("Bytes")}
    recipe = part("Tokenize", **made_of, split=part("HashSplit", fraction=0.1))
    config = tiny(tmp_path / "run", data__source=mixed, data__recipe=recipe)
    file = str(write(tmp_path / "c.yaml", config))
    (line,) = refused("check", "-c", file)
    assert line.startswith("data.recipe=Tokenize")
    assert run("check", "-c", file, line.rpartition("write ")[2]).code == 0


def test_the_past_is_what_was_read_and_the_remedy_keeps_it() -> None:
    before = Mixture(sources=sources(), weights=WEIGHTS)
    tokens = int(before.remedy(100, 8).split("after '")[1].split(" ")[0])
    later = Mixture(sources=sources(), weights=WEIGHTS, changes=[change(tokens, books=1)])
    assert later.fingerprint() != before.fingerprint()
    assert later.past(100, 8) == before.past(100, 8)
    sooner = Mixture(sources=sources(), weights=WEIGHTS, changes=[change(99 * 8, books=1)])
    assert sooner.past(100, 8) != before.past(100, 8)
    other = Mixture(sources=sources(books=RandomTokens(vocabulary=50, seed=9)), weights=WEIGHTS)
    assert other.past(100, 8) != before.past(100, 8)
    changed = {key for key, fact in before.identity().items() if fact != other.identity()[key]}
    assert changed == {"books: tokens"}


def test_what_packing_costs_is_said_of_each_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RandomTokens, "window_facts", lambda self, _: {"packed_windows": 50})
    mixture = Mixture(sources=sources(), weights=WEIGHTS)
    packed = {f"{name}_packed_windows": 50 for name in WEIGHTS}
    assert packed.items() <= mixture.window_facts(8).items()
    realised = mixture.realised(1000, 8)
    assert [realised[f"data/{name}/epochs"] for name in WEIGHTS] == [14, 4, 2]


def test_held_out_sets_are_those_of_the_sources() -> None:
    nested = Mixture(sources={"a": RandomTokens(seed=1), "b": RandomTokens(seed=2)})
    mixture = Mixture(sources={"web": RandomTokens(), "rest": nested})
    assert mixture.held_out_sets() == ("web", "rest/a", "rest/b")
    found = mixture.held_out_windows(16, "rest/b").batch([5])
    assert (found == RandomTokens(seed=2).held_out_windows(16).batch([5])).all()


@pytest.mark.parametrize(
    ("settings", "key", "remedy"),
    [
        ({"sources": {}}, "sources=", "one or more"),
        ({"sources": {"a/b": RandomTokens()}}, "a/b", "without '/'"),
        ({"weights": {"wbe": 1}}, "wbe", "correct the name"),
        ({"weights": {"web": -1}}, "weights=", "0 or more"),
        ({"weights": {"web": 0}}, "weights=", "above 0"),
        ({"unit": "passes"}, "unit=", "share, epochs"),
        ({"temperature": 0}, "temperature=0", "above 0"),
        ({"changes": [change(5, web=1), change(5, code=1)]}, "changes", "in that order"),
    ],
)
def test_what_cannot_be_mixed_is_refused(settings: dict[str, Any], key: str, remedy: str) -> None:
    with pytest.raises(ConfigError, match=remedy) as caught:
        Mixture(**{"sources": sources(), **settings})
    assert key in str(caught.value)


@pytest.mark.parametrize("per_device", [1, 3, 4])
def test_validation_reads_each_held_out_window_once_in_batches_of_any_size(per_device: int) -> None:
    source = Mixture(
        sources={
            "web": RandomTokens(vocabulary=50, held_out_length=8 * 5),
            "code": RandomTokens(vocabulary=50, held_out_length=8 * 7 + 2, seed=1),
        }
    )
    wanted = [
        row
        for name in source.held_out_sets()
        for row in source.held_out_windows(8, name).batch(range(5 if name == "web" else 8)).tolist()
    ]
    read = []
    for rank in range(2):
        data = TokenData(source)
        share = Share(rank=rank, data_ranks=2, per_device=per_device, accumulation=1)
        data.bind(share=share, sequence=8, seed=1, steps_total=1, pin_memory=False)
        rows = [row for batch in data.val_dataloader() for row in batch.tolist()]
        read += [row for row in rows if row[0] >= 0]
    assert sorted(read) == sorted(wanted)
