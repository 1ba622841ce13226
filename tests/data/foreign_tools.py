"""Writes a corpus with another program, and compares windows with those of its own reader.

Run with the program's name and an empty folder; it is run in a process of its own, since these
programs start threads and servers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import numpy as np

SEQUENCE = 64
VOCABULARY = 5000


def documents() -> list[np.ndarray]:
    draw = np.random.default_rng(3)
    return [draw.integers(0, VOCABULARY, size) for size in draw.integers(1, 900, 300)]


def items(numbers: list[int]) -> Iterator[object]:
    import torch

    everything = documents()
    for number in numbers:
        yield torch.from_numpy(everything[number].astype(np.int32))


def litdata(folder: Path) -> tuple[object, Callable[[int], np.ndarray], list[int], int]:
    """Blocks of its reader do not cross chunks: first and last blocks of each chunk."""
    import json

    from litdata import StreamingDataset, TokensLoader, optimize

    from llm_train.data import LitDataTokens

    groups = [list(range(n, n + 50)) for n in range(0, 300, 50)]
    optimize(fn=items, inputs=groups, output_dir=str(folder), num_workers=1, chunk_bytes=100_000,
             item_loader=TokensLoader())  # fmt: skip
    length = SEQUENCE + 1
    theirs = StreamingDataset(str(folder), item_loader=TokensLoader(block_size=length))
    chunks = json.loads((folder / "index.json").read_text())["chunks"]
    assert len(chunks) > 2
    places, block, before = {}, 0, 0
    for chunk in chunks:
        for number in range(chunk["dim"] // length):
            places[before + number * length] = block
            block += 1
        before += chunk["dim"]
    source = LitDataTokens(path=str(folder), vocabulary=VOCABULARY)
    assert len(source.documents()) == 300
    return source, lambda start: np.asarray(theirs[places[start]]), list(places), before


def mds(folder: Path) -> tuple[object, Callable[[int], np.ndarray], list[int], int]:
    """Samples of a fixed length, as llm-foundry writes them, in shards of which each is packed."""
    for name in ("torchvision", "torchvision.datasets", "torchvision.transforms.functional"):
        sys.modules[name] = ModuleType(name)  # it imports them for pictures
        sys.modules[name].__spec__ = ModuleSpec(name, None)
    sys.modules["torchvision.datasets"].VisionDataset = object
    sys.modules["torchvision.transforms.functional"].to_tensor = None
    from streaming import LocalDataset, MDSWriter

    from llm_train.data import MosaicTokens

    length, joined = SEQUENCE + 1, np.concatenate(documents())
    joined = joined[: joined.size // length * length].astype(np.int32)
    with MDSWriter(out=str(folder), columns={"tokens": "ndarray:int32"}, size_limit=1 << 16) as out:
        for row in joined.reshape(-1, length):
            out.write({"tokens": row})
    source = MosaicTokens(path=str(folder), vocabulary=VOCABULARY)
    assert source.check() == []
    theirs = LocalDataset(str(folder))
    starts = list(range(0, joined.size, length))
    return source, lambda start: theirs[start // length]["tokens"], starts, joined.size


def megatron(folder: Path) -> tuple[object, Callable[[int], np.ndarray], list[int], int]:
    """Documents of one or two sequences, through Megatron's builder and reader of indexed data."""
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

    from llm_train.data import MegatronTokens

    folder.mkdir()
    builder = IndexedDatasetBuilder(str(folder / "corpus.bin"), dtype=np.uint16)
    everything, places, before = documents(), {}, 0
    for number, ids in enumerate(everything):
        halves = [half for half in np.array_split(ids, 1 + number % 2) if half.size]
        for half in halves:
            if half.size > SEQUENCE:
                places[before] = len(places), len(builder.sequence_lengths)
            builder.add_item(torch.from_numpy(half))
            before += half.size
        builder.end_document()
    builder.finalize(str(folder / "corpus.idx"))
    theirs = IndexedDataset(str(folder / "corpus"))
    source = MegatronTokens(path=str(folder / "corpus"), vocabulary=VOCABULARY)
    firsts = np.cumsum([0, *(ids.size for ids in everything)])[:-1]
    assert np.array_equal(source.documents().starts(), firsts)
    window = SEQUENCE + 1
    return source, lambda start: theirs[places[start][1]][:window], list(places), before


def datatrove(folder: Path) -> tuple[object, Callable[[int], np.ndarray], list[int], int]:
    """Two files through the writer of its own tokeniser."""
    from datatrove.pipeline.tokens.tokenizer import TokenizedFile
    from datatrove.utils.dataset import DatatroveFolderDataset

    from llm_train.data import DatatroveTokens

    everything, places, block, before = documents(), {}, 0, 0
    for number in range(2):
        file = TokenizedFile(str(folder), f"0000{number}_shuffled.ds", token_size=2,
                             tokenizer_name_or_path="gpt2", save_final_metadata=True)  # fmt: skip
        for each in everything[number * 150 : number * 150 + 150]:
            file.write(each.tolist(), None)
        file.close()
        for start in range(0, len(file) - SEQUENCE, SEQUENCE + 1):
            places[before + start] = block
            block += 1
        before += len(file)
    theirs = DatatroveFolderDataset(str(folder), SEQUENCE, filename_pattern="*.ds")
    source = DatatroveTokens(path=str(folder), vocabulary=VOCABULARY)
    assert len(source.documents()) == 300
    return source, lambda start: theirs[places[start]]["input_ids"].numpy(), list(places), before


def main() -> None:
    folder = Path(sys.argv[2]) / "corpus"
    source, theirs, starts, tokens = globals()[sys.argv[1]](folder)
    row = source._row("train")
    assert len(row) == tokens, (len(row), tokens)
    for start in (*starts[:20], *starts[-20:]):
        ours = row.rows([start], SEQUENCE + 1)[0]
        assert np.array_equal(ours, theirs(start)), start
    sys.stdout.write(f"{tokens} tokens, first and last 20 of {len(starts)} windows equal\n")


if __name__ == "__main__":
    main()
