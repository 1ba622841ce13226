"""Text to token shards: ours and its peers on the same files, in tokens per second of CPU time.

    python -m benchmarks.preparing --megabytes 200 --peers PYTHON

PYTHON has litdata and datatrove; without it these two are left out. The corpus is made
of the source of installed packages, which every machine has, as JSONL and as Parquet. All use one
tokenizer with 32,768 ids, learnt by ours. CPU time counts all processes of a command, so that a
busy machine changes the figures little. ``inside`` is our encoding of units alone, without start
and merging.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.peers.preparing import WAYS

VOCABULARY = 32_768
ELSEWHERE = ("litdata", "datatrove")  # want other versions of what we use
PEERS = "benchmarks.peers.preparing"


def texts(megabytes: float, seed: int) -> Iterator[str]:
    """Files of the standard library and of installed packages, and copies with other numbers."""
    roots = {sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")}
    files = sorted({file for root in roots for file in Path(root).rglob("*.py")})
    draw, left = random.Random(seed), megabytes * 1e6
    while left > 0:
        draw.shuffle(files)
        mark = f"# {draw.random()}\n"
        for file in files:
            try:
                text = mark + file.read_bytes().decode()
            except (UnicodeDecodeError, OSError):
                continue
            yield text
            left -= len(text.encode())
            if left <= 0:
                return


def write_corpora(folder: Path, megabytes: float, seed: int) -> None:
    """Half of the text as JSONL and half as Parquet."""
    import pyarrow
    from pyarrow import parquet

    documents = list(texts(megabytes, seed))
    half = len(documents) // 2
    with open(folder / "half.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in documents[:half])
    table = pyarrow.table({"text": documents[half:]})
    parquet.write_table(table, folder / "half.parquet", row_group_size=1000)


def measured(command: list[str]) -> dict[str, float]:
    """Runs a way and adds CPU seconds and the largest resident memory of its processes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path[:1] or ["."])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    found = json.loads(done.stdout.splitlines()[-1])
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    found.update(cpu_s=round(cpu, 2), wall_s=round(time.monotonic() - started, 2))
    found["tokens_per_cpu_s"] = round(found["tokens"] / cpu)
    return dict(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, default=200.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--peers", default="", help="interpreter that has the peers' packages")
    parser.add_argument("--out", default="", help="file for the figures, as JSON")
    parser.add_argument("--ways", default=",".join(WAYS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_corpora(folder, options.megabytes, options.seed)
        results: dict[str, dict[str, float]] = {}
        for way in ["train", "ours", "inside", *options.ways.split(",")]:
            python = options.peers if way in ELSEWHERE else sys.executable
            if not python:
                continue
            command = [python, "-m", PEERS, way, str(folder), str(VOCABULARY)]
            results[way] = measured(command)
            sys.stdout.write(f"{way:16} {results[way]}\n")
            sys.stdout.flush()
    if options.out:
        Path(options.out).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
