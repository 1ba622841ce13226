"""Measures what a mixture costs: a million samples of three sources against those of one of them.

The two take turns, so that a busy machine slows both; the figure is CPU time of the main process,
the files are in the page cache, and finding the order of the mixture is in its first batch.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.peers.ours import write_shards
from benchmarks.work import write_tokens
from llm_train.data.mixture import Mixture
from llm_train.data.module import TokenData
from llm_train.data.sampler import Share
from llm_train.data.token_shards import TokenShards
from llm_train.data.token_source import TokenSource

SAMPLES = 1_000_000
TURNS = 20
CASES = ((12, 128), (12, 1024), (64, 1024))  # samples per micro-batch, sequence


def measure(directory: Path) -> list[dict[str, Any]]:
    """Returns a row for each case."""
    tokens = write_tokens(directory / "loader.bin", 50304, 20_000_000)
    path = directory / "1.shards"
    write_shards(str(tokens), 50304, 1, str(path))
    return [_case(path, *case) for case in CASES]


def _case(path: Path, samples: int, sequence: int) -> dict[str, Any]:
    one = TokenShards(path=str(path))
    parts: dict[str, TokenSource] = {
        name: TokenShards(path=str(path)) for name in ("web", "code", "books")
    }
    mixture = Mixture(sources=parts, weights={"web": 0.7, "code": 0.2, "books": 0.1})
    both = [_batches(source, samples, sequence) for source in (mixture, one)]
    seconds = [0.0, 0.0]
    for _ in range(TURNS):
        for index, batches in enumerate(both):
            start = time.process_time()
            for _ in range(SAMPLES // TURNS // samples):
                next(batches)
            seconds[index] += time.process_time() - start
    return {
        "what": "mixture of three",
        "samples": samples,
        "sequence": sequence,
        "cpu_s": seconds[0],
        "to_one_source": seconds[0] / seconds[1],
    }


def _batches(source: TokenSource, samples: int, sequence: int) -> Iterator[Any]:
    data = TokenData(source)
    share = Share(rank=0, data_ranks=1, per_device=samples, accumulation=1)
    data.bind(share=share, sequence=sequence, seed=1, steps_total=10**7, pin_memory=False)
    return iter(data.train_dataloader())
