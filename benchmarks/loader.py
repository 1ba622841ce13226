"""Measures how fast the main process makes batches, and how long a training step waits for them.

The speed is in tokens per second of CPU time, so that a busy machine changes the figure little;
the files are in the page cache. Next to it stand the speed of the first batches, whose blocks are
verified on the way, and the ratio to plain maps of all shards, which take turns with ours, verify
nothing and die of SIGBUS where a file shrinks. The wait is measured with a simulated GPU: each step
sleeps as long as a device would take for the tokens at a given rate, as the main process does when
it waits for a device, and the loader works in between. Cold figures begin with the files outside of
the page cache. The last row is of 15T tokens in 60,000 shards, which are sparse files without a
byte on the disk: what a process needs until it has its first batch, beyond its imports.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.peers.ours import write_shards
from benchmarks.usage import arguments
from benchmarks.work import write_tokens
from llm_train.data.module import TokenData
from llm_train.data.reader import MappedTokens, ShardTokens
from llm_train.data.sampler import Share
from llm_train.data.shards import hash_of
from llm_train.data.token_manifest import VERSION, Manifest, StoredFile, StoredSplit
from llm_train.data.token_shards import TokenShards
from llm_train.data.windows import Tokens
from llm_train.runtime.maps import map_file

SEQUENCE = 1024
SAMPLES = (4, 12, 16, 64)  # per micro-batch
SHARDS = (1, 54, 1000)
ROUNDS = 9
MANY_SHARDS = 60_000
MANY_TOKENS = 15 * 10**12


class PlainMaps(Tokens):
    """Reads windows as slices of maps."""

    def __init__(self, directory: Path) -> None:
        files = sorted(directory.glob("train-*.bin"))
        self._maps = [np.frombuffer(map_file(f, f.stat().st_size), "<u2") for f in files]
        self._firsts = [0, *accumulate(ids.size for ids in self._maps)]

    def __len__(self) -> int:
        return self._firsts[-1]

    def read(self, start: int, out: Any) -> None:
        shard, done = bisect_right(self._firsts, start) - 1, 0
        while done < out.size:
            first = start + done - self._firsts[shard]
            part = self._maps[shard][first : first + out.size - done]
            out[done : done + part.size] = part
            done, shard = done + part.size, shard + 1

    def rows(self, starts: Sequence[int], length: int) -> Any:
        out = np.empty((len(starts), length), dtype=np.uint16)
        for row, start in zip(out, starts, strict=True):
            self.read(start, row)
        return out


def measure(directory: Path) -> list[dict[str, Any]]:
    """Returns rows: ours by shards and micro-batch, nanoGPT's way, the wait at 800,000 tokens/s."""
    tokens = write_tokens(directory / "loader.bin", 50304, 20_000_000)
    rows = []
    for shards in SHARDS:
        path = directory / f"{shards}.shards"
        write_shards(str(tokens), 50304, shards, str(path))
        for samples in SAMPLES if shards == 1 else (12, 64):
            rows.append(_against_plain_maps(path, shards, samples))
    rate = _rate(lambda: _one_by_one(str(tokens), 12), 12, times=200)
    rows.append({"what": "a slice and a cast per sample", "samples": 12,
                 "million_tokens_per_cpu_s": rate})  # fmt: skip
    for samples in (12, 64):
        path = directory / f"{SHARDS[0]}.shards"
        rows.append(_wait(path, samples=samples, tokens_per_s=800_000))
    rows.append(_scale(directory / "many.shards"))
    return rows


def _against_plain_maps(path: Path, shards: int, samples: int) -> dict[str, Any]:
    cold = _cold(path, samples)
    ours, plain = _loader(path, samples), _loader(path, samples)
    plain.dataset.windows._tokens = PlainMaps(path)
    ours, plain = iter(ours), iter(plain)
    first = _rate(lambda: next(ours), samples, times=480 // samples, warmup=0)
    for batches in (ours, plain):
        _rate(lambda batches=batches: next(batches), samples, times=60_000 // samples, warmup=0)
    rounds = [
        [
            _rate(lambda b=b: next(b), samples, times=6_000 // samples, warmup=0)
            for b in (ours, plain)
        ]
        for _ in range(ROUNDS)
    ]
    return {
        "what": "ours",
        "shards": shards,
        "samples": samples,
        "million_tokens_per_cpu_s": median(mine for mine, _ in rounds),
        "while_blocks_are_verified": first,
        **cold,
        "to_plain_maps": median(mine / theirs for mine, theirs in rounds),
    }


def _cold(path: Path, samples: int) -> dict[str, float]:
    """Measures the first batches of a process whose files are on the disk alone."""
    for file in path.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    batches, times = iter(_loader(path, samples)), 480 // samples
    start = time.perf_counter()
    rate = _rate(lambda: next(batches), samples, times=times, warmup=0)
    seconds = time.perf_counter() - start
    return {"cold": rate, "cold_million_tokens_per_s": times * samples * SEQUENCE / seconds / 1e6}


def _scale(path: Path) -> dict[str, Any]:
    """Measures in a process of its own what 60,000 shards need before the first batch and later."""
    path.mkdir()
    tokens = MANY_TOKENS // MANY_SHARDS
    train = [
        StoredFile(name=f"train-{n:05d}.bin", bytes=2 * tokens, sha256=f"{n:064d}")
        for n in range(MANY_SHARDS)
    ]
    held_out = [StoredFile(name="held_out-00000.bin", bytes=20_000, sha256="0" * 64)]
    for file in (*train, *held_out):
        with open(path / file.name, "wb") as out:
            out.truncate(file.bytes)
    splits = {
        name: StoredSplit(
            tokens=sum(file.bytes for file in files) // 2,
            documents=1,
            text_bytes=1,
            decoded_bytes=1,
            sha256=hash_of(files),
            shards=files,
        )
        for name, files in (("train", train), ("held_out", held_out))
    }
    Manifest(
        version=VERSION,
        dtype="uint16",
        vocab_size=50304,
        end_of_text=-1,
        splits=splits,
        others=[],
        recipe={},
        provenance={},
        skipped={},
        references={},
        examples={},
        encoder="",
        content="",
    ).save(path)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.loader", str(path)], check=True, stdout=subprocess.PIPE
    )
    return {"what": "15T tokens", "shards": MANY_SHARDS, **json.loads(done.stdout)}


def _start(path: Path) -> dict[str, Any]:
    """Returns seconds until the first batch, and memory and descriptors after 10,000 more."""
    before, start = _peak_mb(), (time.perf_counter(), time.process_time())
    batches = iter(_loader(path, 12))
    next(batches)
    found = {
        "start_s": time.perf_counter() - start[0],
        "start_cpu_s": time.process_time() - start[1],
        "start_mb": _peak_mb() - before,
    }
    for _ in range(10_000):
        next(batches)
    descriptors = len(os.listdir("/proc/self/fd"))
    return {**found, "later_mb": _peak_mb() - before, "descriptors": descriptors}


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _loader(path: Path, samples: int) -> Any:
    data = TokenData(TokenShards(path=str(path)))
    data.bind(
        share=Share(rank=0, data_ranks=1, per_device=samples, accumulation=1),
        sequence=SEQUENCE,
        seed=1,
        steps_total=10**7,
        pin_memory=False,
    )
    return data.train_dataloader()


def _rate(make: Any, samples: int, times: int = 3000, warmup: int = 100) -> float:
    for _ in range(warmup):
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


def _wait(path: Path, *, samples: int, tokens_per_s: float, steps: int = 100) -> dict[str, Any]:
    """Measures the share of a step that passes between asking for a batch and having it.

    The result is an upper bound: after a sleep the processor's caches are cold, which they need not
    be alongside a busy GPU.
    """
    batches = iter(_loader(path, samples))
    step = samples * SEQUENCE / tokens_per_s
    waited = 0.0
    for _ in range(steps):
        start = time.perf_counter()
        next(batches)
        waited += time.perf_counter() - start
        time.sleep(step)
    return {"what": "wait for data", "samples": samples, "tokens_per_s": tokens_per_s,
            "share_of_step": waited / (waited + steps * step)}  # fmt: skip


if __name__ == "__main__":
    (folder,) = arguments("folder")
    # Checksums of blocks would be 2 GB, and say nothing about files that are holes.
    ShardTokens._sums = MappedTokens._sums
    print(json.dumps(_start(Path(folder))))
