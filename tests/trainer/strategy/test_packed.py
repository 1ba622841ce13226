"""Whole documents, kept apart, train alike on any ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_train.data import HashSplit, TextFiles, Tokenize, TrainBPE, prepare
from llm_train.testing.configs import part, tiny, write
from llm_train.testing.fork_server import ForkServer
from llm_train.trainer.logger.records import read_metrics

STEPS = 6
pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    (folder / "texts").mkdir()
    random = np.random.default_rng(0)
    for number in range(120):
        words = " ".join(f"w{word}" for word in random.integers(0, 9, random.integers(1, 14)))
        (folder / "texts" / f"{number}.txt").write_text(words)
    corpus = TextFiles(paths=[str(folder / "texts")])
    split = HashSplit(fraction=0.2, salt="")
    recipe = Tokenize(corpus=corpus, tokenizer=TrainBPE(vocab_size=280), split=split)
    prepare(recipe, folder / "tokens", progress=False)
    return folder / "tokens"


def records(
    fork_server: ForkServer, folder: Path, shards: Path, ranks: int, **overrides: Any
) -> list[dict[str, Any]]:
    settings: dict[str, Any] = {
        "data__source": part("TokenShards", path=str(shards), packing="best_fit"),
        "model__documents": "confined",
        "model__network__init_args__vocab_size": 280,
        "model__network__init_args__dropout": 0.0,
        "model__network__init_args__positions": "learned",
        "model__network__init_args__activation": "gelu",
        "checkpoint__every": "3 steps",
    }
    config = tiny(folder / "run", steps=STEPS, **{**settings, **overrides})
    path, log = write(folder / "c.yaml", config), folder / "log.txt"
    statuses = fork_server.run("fit", "-c", str(path), ranks=ranks, log=log)
    assert set(statuses) == {0}, log.read_text()
    assert "packed_padding" in log.read_text()
    return [r for r in read_metrics(folder / "run" / "metrics.jsonl") if "train/loss" in r]


def test_two_ranks_equal_one_process(
    fork_server: ForkServer, shards: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Data parallel, and with matrices and positions cut in two."""
    alone = records(fork_server, tmp_path_factory.mktemp("single"), shards, 0)
    assert all(0.5 < record["train/counted"] < 1.0 for record in alone)
    tensor = part("FSDP", tensor=2)
    for strategy in ("fsdp", tensor):
        folder = tmp_path_factory.mktemp("ranks")
        found = records(fork_server, folder, shards, 2, trainer__strategy=strategy)
        for key in ("train/loss", "grad/norm", "train/counted"):
            expected = [record[key] for record in alone]
            assert [record[key] for record in found] == pytest.approx(expected, rel=1e-5)
