"""Corpora of other programs: written by their definition here, and by the programs themselves."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from llm_train.data import (
    DatatroveTokens,
    LitDataTokens,
    MegatronTokens,
    MosaicTokens,
    NanoGPTTokens,
    TrainBPE,
)
from llm_train.data.base import HELD_OUT, Texts
from llm_train.data.foreign.base import ForeignTokens
from llm_train.errors import ConfigError, DataError

Rows = list[npt.NDArray[np.int64]]
VOCABULARY = 5000


@pytest.fixture(scope="module")
def documents() -> Rows:
    draw = np.random.default_rng(7)
    return [draw.integers(0, VOCABULARY, size) for size in draw.integers(1, 700, 60)]


def megatron(folder: Path, documents: Rows, dtype: str) -> None:
    folder.mkdir()
    np.concatenate(documents).astype(dtype).tofile(folder / "corpus.bin")
    # Every third document is of two sequences.
    pieces = [half for n, ids in enumerate(documents)
              for half in (np.array_split(ids, 2) if n % 3 == 0 else [ids])]  # fmt: skip
    sizes = np.array([piece.size for piece in pieces], "<i4")
    borders = np.cumsum([0] + [2 if n % 3 == 0 else 1 for n in range(len(documents))])
    pointers = (np.cumsum(sizes, dtype=np.int64) - sizes) * np.dtype(dtype).itemsize
    code = {"uint16": 8, "int32": 4, "int64": 5}[dtype]
    with open(folder / "corpus.idx", "wb") as file:
        file.write(b"MMIDIDX\x00\x00" + np.array([1], "<u8").tobytes() + bytes([code]))
        file.write(np.array([sizes.size, borders.size], "<u8").tobytes())
        for values, kind in ((sizes, "<i4"), (pointers, "<i8"), (borders, "<i8")):
            file.write(values.astype(kind).tobytes())


def llm_c(folder: Path, documents: Rows, dtype: str) -> None:
    folder.mkdir()
    for n, ids in enumerate((documents[:20], documents[20:])):
        header = np.zeros(256, "<i4")
        joined = np.concatenate(ids)
        header[:3] = {"uint16": 20240520, "uint32": 20240801}[dtype], 1, joined.size
        (folder / f"train_{n}.bin").write_bytes(header.tobytes() + joined.astype(dtype).tobytes())


def datatrove(folder: Path, documents: Rows, dtype: str) -> None:
    folder.mkdir()
    for n, ids in enumerate((documents[:20], documents[20:])):
        name = folder / f"0000{n}_shuffled.ds"
        np.concatenate(ids).astype(dtype).tofile(name)
        np.cumsum([each.size for each in ids]).astype("<u8").tofile(f"{name}.index")
        width = np.dtype(dtype).itemsize
        Path(f"{name}.metadata").write_text(f"gpt2|{width}\n1\n1 T")


def litdata(folder: Path, documents: Rows, dtype: str) -> None:
    folder.mkdir()
    chunks = []
    for n, ids in enumerate((documents[:20], documents[20:])):
        data = b"".join(each.astype(dtype).tobytes() for each in ids)
        ends = np.cumsum([0] + [each.size * np.dtype(dtype).itemsize for each in ids])
        head = np.array([len(ids)], "<u4").tobytes()
        content = head + (ends + 4 * (len(ids) + 2)).astype("<u4").tobytes() + data
        (folder / f"chunk-0-{n}.bin").write_bytes(content)
        chunks.append({"filename": f"chunk-0-{n}.bin", "chunk_bytes": len(content),
                       "chunk_size": len(ids), "dim": sum(each.size for each in ids)})  # fmt: skip
    kind = {"int32": "tensor:16", "uint16": "numpy:5", "int64": "tensor:18"}[dtype]
    config = {"compression": None, "encryption": None, "data_format": [f"no_header_{kind}"]}
    (folder / "index.json").write_text(json.dumps({"chunks": chunks, "config": config}))


def mds(folder: Path, documents: Rows, encoding: str) -> None:
    folder.mkdir()
    shards = []
    for n, ids in enumerate((documents[:20], documents[20:])):
        samples = []
        for each in ids:
            value = each.astype(encoding.partition(":")[2] or "int64").tobytes()
            if encoding != "bytes":
                value = (bytes([1 << 2 | 1]) + np.array([each.size], "<u2").tobytes()) + value
            samples.append(np.array([len(value)], "<u4").tobytes() + value)
        shard = {"column_names": ["tokens"], "column_encodings": [encoding],
                 "column_sizes": [None], "format": "mds", "version": 2,
                 "samples": len(ids), "zip_data": None}  # fmt: skip
        config = json.dumps(shard).encode()
        begins = np.cumsum([0] + [len(s) for s in samples]) + 4 * (len(ids) + 2) + len(config)
        content = np.array([len(ids)], "<u4").tobytes() + begins.astype("<u4").tobytes()
        content += config + b"".join(samples)
        name = f"shard.0000{n}.mds"
        (folder / name).write_bytes(content)
        shard["raw_data"] = {"basename": name, "bytes": len(content)}
        shards.append(shard)
    (folder / "index.json").write_text(json.dumps({"shards": shards, "version": 2}))


def bare(folder: Path, documents: Rows, dtype: str) -> None:
    folder.mkdir()
    np.concatenate(documents).astype(dtype).tofile(folder / "train.bin")


FORMATS = [
    *((MegatronTokens, megatron, dtype, True) for dtype in ("uint16", "int32", "int64")),
    (NanoGPTTokens, bare, "uint16", False),
    *((NanoGPTTokens, llm_c, dtype, False) for dtype in ("uint16", "uint32")),
    *((DatatroveTokens, datatrove, dtype, True) for dtype in ("uint16", "uint32")),
    *((LitDataTokens, litdata, dtype, True) for dtype in ("uint16", "int32", "int64")),
    *((MosaicTokens, mds, kind, False) for kind in ("bytes", "ndarray:int32", "ndarray:uint16")),
]


@pytest.mark.parametrize(("kind", "write", "dtype", "known"), FORMATS)
def test_every_token_as_it_was_written(
    kind: type[ForeignTokens], write, dtype: str, known: bool, documents: Rows, tmp_path: Path
) -> None:
    write(tmp_path / "corpus", documents, dtype)
    expected = np.concatenate(documents)
    path = str(tmp_path / "corpus" / "corpus" if write is megatron else tmp_path / "corpus")
    source = kind(path=path, vocabulary=VOCABULARY, held_out_tokens=1000)
    assert source.check() == []
    windows = source.train_windows(64, 1)
    starts = np.array(windows.located(np.arange(len(windows))))
    rows = windows.batch(np.arange(len(windows)))
    assert rows.dtype == (np.uint16 if "16" in dtype else np.int32)
    assert (rows == expected[starts[:, None] + np.arange(65)]).all()
    held_out = source.held_out_windows(64).batch([0])[0]
    assert held_out.tolist() == expected[-1000:-935].tolist()
    assert source.description()["train_tokens"] == expected.size - 1000
    found = source.documents()
    if not known:
        assert found is None
        return
    firsts = np.cumsum([0, *(each.size for each in documents)])
    inside = firsts[firsts < expected.size - 1000]
    assert found.starts().tolist() == inside.tolist()
    place = found.find(int(inside[3]))
    assert (place.start, place.stop, place.number) == (inside[3], inside[4], 3)
    tail = source.documents(HELD_OUT)
    assert tail.starts()[0] == 0
    assert tail.find(999).stop == 1000
    assert tail.find(0).key.endswith(f"#{len(inside) - 1}")


def test_settings_of_a_foreign_corpus(documents: Rows, tmp_path: Path) -> None:
    bare(tmp_path / "a", documents, "uint16")
    bare(tmp_path / "b", documents[:5], "uint16")
    source = NanoGPTTokens(path=str(tmp_path / "a" / "*.bin"), vocabulary=VOCABULARY)
    assert source.held_out_sets() == ()
    assert "held_out_tokens" not in source.description()
    text = ["some text of words " * 20]
    tokenizer = TrainBPE(vocab_size=300).build(Texts(lambda: iter(text), lambda: iter(text)))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    other = NanoGPTTokens(
        path=str(tmp_path / "a"),
        held_out=str(tmp_path / "b"),
        tokenizer=str(tmp_path / "tokenizer.json"),
    )
    assert other.held_out_sets() == (HELD_OUT,)
    assert other.token_bytes().size == other.vocab_size() == tokenizer.get_vocab_size()
    assert other.end_of_text() == tokenizer.token_to_id("<|endoftext|>")
    [problem] = other.check()
    assert "its vocabulary has 2" in problem
    with pytest.raises(ConfigError, match="vocabulary=0 and tokenizer=''"):
        NanoGPTTokens(path="x")
    [problem] = replace(source, path=str(tmp_path / "none")).check()
    assert "correct the path" in problem
    assert source.fingerprint() == replace(source, path=str(tmp_path / "a")).fingerprint()
    assert source.fingerprint() != replace(source, held_out_tokens=9).fingerprint()


def test_damage_of_a_foreign_corpus_is_one_line(documents: Rows, tmp_path: Path) -> None:
    for kind, write, dtype, _ in FORMATS[2::3]:
        folder = tmp_path / f"{write.__name__}{dtype}"
        write(folder, documents, dtype)
        path = str(folder / "corpus" if write is megatron else folder)
        for file in sorted(folder.iterdir()):
            content = file.read_bytes()
            for broken in (b"", content[: len(content) // 2 + 1], b"{" + content[1:]):
                file.write_bytes(broken)
                for problem in kind(path=path, vocabulary=VOCABULARY).check():
                    assert "\n" not in problem
                    assert str(folder) in problem
            file.unlink()
            for problem in kind(path=path, vocabulary=VOCABULARY).check():
                assert str(folder) in problem
            file.write_bytes(content)
    with pytest.raises(DataError, match="too few for held_out_tokens"):
        kind(path=path, vocabulary=VOCABULARY, held_out_tokens=10**9).train_windows(8, 1)


def test_compressed_shards_are_to_be_unpacked(documents: Rows, tmp_path: Path) -> None:
    mds(tmp_path / "mds", documents, "bytes")
    (tmp_path / "mds" / "shard.00001.mds").unlink()
    index = json.loads((tmp_path / "mds" / "index.json").read_text())
    index["shards"][1]["zip_data"] = {"basename": "shard.00001.mds.zstd", "bytes": 9}
    (tmp_path / "mds" / "index.json").write_text(json.dumps(index))
    [problem] = MosaicTokens(path=str(tmp_path / "mds"), vocabulary=VOCABULARY).check()
    assert "shard.00001.mds.zstd is compressed; unpack it" in problem


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["litdata", "mds", "datatrove", "megatron"])
def test_windows_are_those_of_the_tools_own_reader(tool: str, tmp_path: Path) -> None:
    script = Path(__file__).with_name("foreign_tools.py")
    package = {"mds": "streaming"}.get(tool, tool)
    asked = [sys.executable, "-c", f"import {package}"]
    if subprocess.run(asked, capture_output=True, check=False).returncode:
        pytest.skip(f"{package} is not installed")
    done = subprocess.run(
        [sys.executable, str(script), tool, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("equal\n")
