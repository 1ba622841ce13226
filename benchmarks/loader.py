"""Measures how fast the main process makes batches, and how long a training step waits for them.

The speed is in tokens per second of CPU time, so that a busy machine does not change the figure;
the files are in the page cache. The wait is measured with a simulated GPU: each step sleeps as long
as a device would take for the tokens at a given rate, as the main process does when it waits for a
device, and the loader works in between.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peers.ours import write_shards
from benchmarks.work import write_tokens
from llm_train.data.module import TokenData
from llm_train.data.sampler import Share
from llm_train.data.token_shards import TokenShards

SEQUENCE = 1024
SAMPLES = (4, 12, 16, 64)  # per micro-batch


def measure(directory: Path) -> list[dict[str, Any]]:
    """Returns rows: our loader by micro-batch, nanoGPT's way, and the wait at 800,000 tokens/s."""
    tokens = write_tokens(directory / "loader.bin", 50304, 20_000_000)
    write_shards(str(tokens), 50304)
    rows = []
    for samples in SAMPLES:
        batches = iter(_loader(str(tokens), samples))
        rate = _rate(lambda batches=batches: next(batches), samples)
        rows.append({"what": "ours", "samples": samples, "million_tokens_per_cpu_s": rate})
    rate = _rate(lambda: _one_by_one(str(tokens), 12), 12, times=200)
    rows.append({"what": "a slice and a cast per sample", "samples": 12,
                 "million_tokens_per_cpu_s": rate})  # fmt: skip
    for samples in (12, 64):
        rows.append(_wait(str(tokens), samples=samples, tokens_per_s=800_000))
    return rows


def _loader(tokens: str, samples: int) -> Any:
    data = TokenData(TokenShards(path=tokens + ".shards"))
    data.bind(
        share=Share(rank=0, data_ranks=1, per_device=samples, accumulation=1),
        sequence=SEQUENCE,
        seed=1,
        steps_total=10**7,
        pin_memory=False,
    )
    return data.train_dataloader()


def _rate(make: Any, samples: int, times: int = 3000) -> float:
    for _ in range(100):
        make()
    start = time.process_time()
    for _ in range(times):
        make()
    return times * samples * SEQUENCE / (time.process_time() - start) / 1e6


def _one_by_one(path: str, samples: int) -> torch.Tensor:
    """Reads as many training scripts do: opens the map, slices, casts to int64, stacks."""
    ids = np.memmap(path, dtype=np.uint16, mode="r")
    starts = torch.randint(len(ids) - SEQUENCE, (samples,))
    return torch.stack(
        [torch.from_numpy(ids[i : i + SEQUENCE + 1].astype(np.int64)) for i in starts]
    )


def _wait(tokens: str, *, samples: int, tokens_per_s: float, steps: int = 100) -> dict[str, Any]:
    """Measures the share of a step that passes between asking for a batch and having it.

    The result is an upper bound: after a sleep the processor's caches are cold, which they need not
    be alongside a busy GPU.
    """
    batches = iter(_loader(tokens, samples))
    step = samples * SEQUENCE / tokens_per_s
    waited = 0.0
    for _ in range(steps):
        start = time.perf_counter()
        next(batches)
        waited += time.perf_counter() - start
        time.sleep(step)
    return {"what": "wait for data", "samples": samples, "tokens_per_s": tokens_per_s,
            "share_of_step": waited / (waited + steps * step)}  # fmt: skip
