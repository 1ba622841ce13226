"""The same samples, by hash, whoever reads them: ranks, workers, accumulation, random stops.

A rank's share is arithmetic, so that the ranks of the first test are loaders of one process; the
second one trains on two real ranks.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

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
from llm_train.testing.configs import losses, part, tiny, write
from llm_train.testing.fork_server import ForkServer
from llm_train.units import Duration

SEQUENCE, SAMPLES = 8, 10_016
PER_STEP = 32  # on up to 4 ranks in up to 8 micro-batches


def sources(folder: Path) -> dict[str, Callable[[], TokenSource]]:
    """What the order must not depend on anything for; each call makes it anew."""
    parts: dict[str, TokenSource] = {
        name: RandomTokens(vocabulary=50, length=length, seed=length)
        for name, length in (("web", 30_000), ("code", 4000), ("books", 700))
    }
    change = Change(after=Duration(SEQUENCE * 6001, "tokens"), weights={"web": 1, "code": 1})
    weights = {"web": 6.0, "code": 3.0, "books": 1.0}
    return {
        "one": lambda: RandomTokens(vocabulary=50, length=30_000, seed=1),
        "mixture": lambda: Mixture(sources=parts, weights=weights, changes=[change]),
        "packed": lambda: packed(folder),
    }


def packed(folder: Path) -> Mixture:
    """A mixture of documents that are packed into windows, and of others that are not."""
    for name, count in (("short", 90), ("long", 30)):
        if not (folder / name).exists():
            lines = [f"{'abcdefg' * (number % 9)} {number}" for number in range(count)]
            (folder / f"{name}.txt").write_text("\n".join([*lines, "0123456789"]))
            corpus = TextFiles(paths=[str(folder / f"{name}.txt")], separator="\n")
            recipe = Tokenize(corpus=corpus, tokenizer=Characters(), split=HashSplit(fraction=0.2))
            prepare(recipe, folder / name, progress=False)
    short = TokenShards(path=str(folder / "short"), packing="best_fit")
    parts = {"short": short, "long": TokenShards(path=str(folder / "long"))}
    return Mixture(sources=parts, weights={"short": 2, "long": 1})


def loader(source: TokenSource, rank: int, ranks: int, accumulation: int, **more: Any) -> Any:
    data = TokenData(source, workers=more.pop("workers", 0))
    share = Share(
        rank=rank,
        data_ranks=ranks,
        per_device=PER_STEP // ranks // accumulation,
        accumulation=accumulation,
    )
    total = SAMPLES // PER_STEP
    data.bind(share=share, sequence=SEQUENCE, seed=5, steps_total=total, pin_memory=False)
    data.consumed, data.steps_done = more.get("consumed", 0), more.get("consumed", 0) // PER_STEP
    return data.train_dataloader()


def steps(source: TokenSource, ranks: int, accumulation: int, **more: Any) -> Iterator[str]:
    """A hash of the samples of each step, whichever rank and micro-batch they are in."""
    batches = [iter(loader(source, rank, ranks, accumulation, **more)) for rank in range(ranks)]
    while True:
        found = []
        for _ in range(accumulation):
            for rank in batches:
                if (batch := next(rank, None)) is None:
                    return
                found += [row.tobytes() for row in batch.to(torch.int32).numpy()]
        assert len(found) == PER_STEP
        # Micro-batch by micro-batch, rank by rank: that is the order of the samples.
        yield hashlib.sha256(b"".join(found)).hexdigest()


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
@pytest.mark.parametrize("name", ["one", "mixture", "packed"])
def test_ranks_workers_accumulation_and_stops_change_nothing(name: str, tmp_path: Path) -> None:
    made = sources(tmp_path)[name]
    source = made()
    windows = source.train_windows(SEQUENCE, 5)
    rows = windows.batch(np.arange(SAMPLES)).astype(np.int32)
    expected = [
        hashlib.sha256(rows[first : first + PER_STEP].tobytes()).hexdigest()
        for first in range(0, SAMPLES, PER_STEP)
    ]
    for ranks in (1, 2, 4):
        for accumulation in (1, 8):
            assert list(steps(source, ranks, accumulation)) == expected
    for workers in (1, 3):
        assert list(steps(source, 1, 1, workers=workers)) == expected
    chance, found = random.Random(3), list[str]()
    stops = sorted(chance.sample(range(1, len(expected)), 20))
    for start, stop in zip([0, *stops], [*stops, len(expected)], strict=True):
        ranks, accumulation = chance.choice([1, 2, 4]), chance.choice([1, 8])
        rest = steps(made(), ranks, accumulation, consumed=start * PER_STEP)
        found += [next(rest) for _ in range(stop - start)]
    assert found == expected


@pytest.mark.distributed
def test_two_ranks_train_on_what_one_does(fork_server: ForkServer, tmp_path: Path) -> None:
    named = {
        name: part("RandomTokens", vocabulary=61, length=3000, held_out_length=100, seed=seed)
        for seed, name in enumerate(("web", "code"))
    }
    overrides = {
        "data__source": part("Mixture", sources=named, weights={"web": 3, "code": 1}),
        "data__workers": 1,
        "model__network__init_args__dropout": 0.0,
    }
    found = []
    for ranks in (1, 2):
        run = tmp_path / str(ranks)
        path = write(tmp_path / f"{ranks}.yaml", tiny(run, **overrides))
        log = tmp_path / f"{ranks}.txt"
        assert not any(fork_server.run("fit", "-c", str(path), ranks=ranks, log=log)), (
            log.read_text()
        )
        found.append(losses(run))
    assert found[1] == pytest.approx(found[0], rel=1e-6)
