"""Ways to prepare the corpus of ``benchmarks.preparing``, each in a process of its own.

Each prints the tokens it wrote and the largest resident memory of a process in MiB, as JSON.
Whole pipelines with one process each: from files of text to files of token ids.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.usage import arguments

END = "<|endoftext|>"


def _recipe(folder: Path, tokenizer: Any) -> Any:
    from llm_train.data import Files, HashSplit, Tokenize

    return Tokenize(
        corpus=Files(paths=[str(folder / "half.jsonl"), str(folder / "half.parquet")]),
        tokenizer=tokenizer,
        split=HashSplit(fraction=0.001),
        workers=1,
    )


def train(folder: Path, vocabulary: int) -> int:
    """Ours, with a tokenizer that is learnt from all of the text; keeps it for the others."""
    from llm_train.data import TrainBPE, prepare

    recipe = _recipe(folder, TrainBPE(vocab_size=vocabulary))
    manifest = prepare(recipe, folder / "trained", progress=False)
    (folder / "tokenizer.json").write_bytes((folder / "trained" / "tokenizer.json").read_bytes())
    return sum(split.tokens for split in manifest.splits.values())


def ours(folder: Path, vocabulary: int) -> int:
    """Ours, with a tokenizer that exists."""
    from llm_train.data import TokenizerFile, prepare

    recipe = _recipe(folder, TokenizerFile(path=str(folder / "tokenizer.json")))
    manifest = prepare(recipe, folder / "ours", progress=False)
    return sum(split.tokens for split in manifest.splits.values())


def nanogpt(folder: Path, vocabulary: int) -> int:
    """As nanoGPT's ``prepare.py``: tiktoken in ``datasets.map``, then a memory map."""
    import tiktoken

    plain = json.loads((folder / "tokenizer.json").read_text())
    character = {c: bytes([n]) for n, c in _byte_characters().items()}
    ranks = {
        b"".join(character[c] for c in token): number
        for token, number in plain["model"]["vocab"].items()
        if token != END
    }
    pattern = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    encoding = tiktoken.Encoding(
        "ours", pat_str=pattern, mergeable_ranks=ranks, special_tokens={END: 0}
    )

    def encoded(row: dict[str, str]) -> dict[str, Any]:
        ids = [*encoding.encode_ordinary(row["text"]), 0]
        return {"ids": ids, "len": len(ids)}

    return _mapped(folder, encoded, batched=False)


def datasets(folder: Path, vocabulary: int) -> int:
    """``datasets.map`` over batches, with ``tokenizers``."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))

    def encoded(rows: dict[str, list[str]]) -> dict[str, Any]:
        ids = [[*e.ids, 0] for e in tokenizer.encode_batch(rows["text"])]
        return {"ids": ids, "len": [len(each) for each in ids]}

    return _mapped(folder, encoded, batched=True)


def litdata(folder: Path, vocabulary: int) -> int:
    """``litdata.optimize`` with ``tokenizers``, as in its tutorial."""
    from litdata import TokensLoader, optimize

    optimize(
        fn=partial(_encoded, folder),
        inputs=[str(folder / name) for name in ("half.jsonl", "half.parquet")],
        output_dir=str(folder / "litdata"),
        chunk_bytes="64MB",
        item_loader=TokensLoader(),
        num_workers=1,
    )
    return sum(map(int, (folder / "count").read_text().split()))


def _encoded(folder: Path, file: str) -> Any:
    """The ids of each text of a file; a module's function, because it is pickled."""
    import tokenizers
    import torch

    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    total = 0
    for text in _texts(Path(file)):
        ids = [*tokenizer.encode(text).ids, 0]
        total += len(ids)
        yield torch.tensor(ids)
    with open(folder / "count", "a", encoding="utf-8") as out:
        out.write(f"{total}\n")


def datatrove(folder: Path, vocabulary: int) -> int:
    """Its readers and ``DocumentTokenizer`` in its local executor."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader, ParquetReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    out, total = folder / "datatrove", 0
    for number, reader in enumerate((JsonlReader, ParquetReader)):
        pattern = ("*.jsonl", "*.parquet")[number]
        pipeline = [
            reader(str(folder), glob_pattern=pattern),
            DocumentTokenizer(
                str(out / str(number)),
                tokenizer_name_or_path=str(folder / "tokenizer.json"),
                eos_token=END,
                shuffle_documents=False,
            ),
        ]
        LocalPipelineExecutor(pipeline, logging_dir=str(out / f"log{number}"), workers=1).run()
    for file in out.rglob("*.ds"):
        total += file.stat().st_size // 2
    return total


WAYS: dict[str, Callable[[Path, int], int]] = {
    "nanogpt": nanogpt,
    "datasets": datasets,
    "litdata": litdata,
    "datatrove": datatrove,
}


def _mapped(folder: Path, function: Callable[[Any], Any], *, batched: bool) -> int:
    from datasets import concatenate_datasets, load_dataset

    files = {"json": "half.jsonl", "parquet": "half.parquet"}
    parts = [
        load_dataset(
            kind, data_files=str(folder / name), split="train", cache_dir=str(folder / "cache")
        )
        for kind, name in files.items()
    ]
    rows = concatenate_datasets(parts)
    mapped = rows.map(function, batched=batched, remove_columns=["text"], num_proc=1)
    total = int(np.sum(mapped["len"], dtype=np.uint64))
    out = np.memmap(folder / "mapped.bin", dtype=np.uint16, mode="w+", shape=(total,))
    place = 0
    for number in range(64):
        shard = mapped.shard(num_shards=64, index=number, contiguous=True).with_format("numpy")
        ids = np.concatenate(shard["ids"])
        out[place : place + len(ids)] = ids
        place += len(ids)
    out.flush()
    return total


def _texts(file: Path) -> Any:
    if file.suffix == ".jsonl":
        with open(file, encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)["text"]
        return
    from pyarrow import parquet

    for batch in parquet.ParquetFile(file).iter_batches(columns=["text"]):
        yield from batch.column(0).to_pylist()


def _byte_characters() -> dict[int, str]:
    """GPT-2's character for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (n for n in range(256) if n not in printable)
    return {n: chr(n) for n in printable} | {n: chr(256 + k) for k, n in enumerate(others)}


def inside(folder: Path, vocabulary: int) -> dict[str, float]:
    """Our encoding of one unit after another, without start, merging and a first pass."""
    from llm_train.data import HashSplit
    from llm_train.data.encode_unit import Encoding, encode_unit
    from llm_train.data.reading import Rules

    recipe = _recipe(folder, None)
    tasks = recipe.tasks()
    directory = folder / "inside"
    directory.mkdir()
    for name in ("tokenizer.json", "token_bytes.npy"):
        (directory / name).write_bytes((folder / "trained" / name).read_bytes())
    text = next(iter(tasks[0].corpus.documents(tasks[0].unit))).text
    rules, encoding = Rules(split=HashSplit(fraction=0.001)), Encoding(directory, [text], 0, 10**8)
    started = time.process_time()
    for task in tasks:
        encode_unit(directory, task, rules, encoding, lambda size: None)
    seconds = time.process_time() - started
    tokens = sum(file.stat().st_size for file in directory.glob("*.bin")) // 2
    return {"tokens": tokens, "inside_tokens_per_cpu_s": round(tokens / seconds)}


def main() -> None:
    way, place, size = arguments("way", "folder", "vocabulary")
    folder, vocabulary = Path(place), int(size)
    if way == "inside":
        found = inside(folder, vocabulary)
    else:
        ways = {"train": train, "ours": ours, **WAYS}
        found = {"tokens": ways[way](folder, vocabulary)}
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    found["peak_mib"] = max(resource.getrusage(who).ru_maxrss for who in whose) / 1024
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
