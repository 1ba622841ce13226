import gzip
import json
import os
import sysconfig
from collections.abc import Iterable
from pathlib import Path

import pytest

from llm_train.data import Document, HuggingFace, JSONLines, Skipped, StandardLibrary, TextFiles
from llm_train.errors import ConfigError, DataError


def test_standard_library_lists_source_without_tests() -> None:
    corpus = StandardLibrary()
    files = corpus.files()
    keys = [file.key for file in files]
    assert keys == sorted(keys)
    assert len(keys) == len(set(keys))
    assert {"os.py", "asyncio/tasks.py", "json/decoder.py"} <= set(keys)
    forbidden = {"test", "tests", "idle_test", "site-packages", "__pycache__"}
    assert not any(forbidden & set(key.split("/")) for key in keys)
    provenance = corpus.provenance()
    assert 300 < len(keys) < 2000
    assert 5_000_000 < provenance["bytes"] < 50_000_000


def test_standard_library_reads_what_is_on_disk() -> None:
    root = Path(sysconfig.get_path("stdlib"))
    items = list(StandardLibrary().read())
    by_key = {item.key: item for item in items}
    for key in ("os.py", "json/decoder.py"):
        assert by_key[key] == Document(key, (root / key).read_bytes().decode())
    empty = [item for item in items if isinstance(item, Skipped)]
    assert all(item.reason in ("empty", "not UTF-8") for item in empty)
    assert len(empty) < 20


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "in/deep").mkdir(parents=True)
    (tmp_path / "in/b.txt").write_bytes("zwei\r\nZeilen é".encode())
    (tmp_path / "in/a.txt").write_bytes(b"one")
    (tmp_path / "in/deep/c.md").write_bytes(b"three")
    (tmp_path / "in/.hidden").write_bytes(b"no")
    (tmp_path / "in/empty.txt").write_bytes(b"")
    (tmp_path / "in/latin.txt").write_bytes("é".encode("latin-1"))
    return tmp_path / "in"


def bare(items: Iterable[Document | Skipped]) -> list[Document | Skipped]:
    """Without the details of what is skipped."""
    return [item._replace(detail="") if isinstance(item, Skipped) else item for item in items]


def test_text_files_of_a_directory(tree: Path) -> None:
    assert bare(TextFiles(paths=[str(tree)]).read()) == [
        Document("a.txt", "one"),
        Document("b.txt", "zwei\r\nZeilen é"),
        Document("deep/c.md", "three"),
        Skipped("empty.txt", "empty"),
        Skipped("latin.txt", "not UTF-8"),
    ]


def test_text_files_by_pattern_and_name(tree: Path) -> None:
    corpus = TextFiles(paths=[f"{tree}/**/*.md", f"{tree}/b.txt", f"{tree}/[ab].txt"])
    keys = [item.key for item in corpus.read()]
    assert keys == ["deep/c.md", "b.txt", "a.txt"]
    assert corpus.provenance()["bytes"] == 3 + 5 + 15


def test_keys_do_not_depend_on_where_the_data_lie(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absolute = [item.key for item in TextFiles(paths=[f"{tree}/*.txt"]).read()]
    monkeypatch.chdir(tree)
    assert [item.key for item in TextFiles(paths=["*.txt"]).read()] == absolute
    assert [item.key for item in TextFiles(paths=["./*.txt"]).read()] == absolute


@pytest.mark.parametrize("pause", [0, 1, 2, 3])
def test_separator_cuts_a_file(tmp_path: Path, pause: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_train.data.corpus.formats.text.BUFFER_BYTES", 7 + pause)
    path = tmp_path / "stories.txt"
    path.write_text("first story<|end|>second é<|end|><|end|>third", newline="")
    items = list(TextFiles(paths=[str(path)], separator="<|end|>").read())
    assert items == [
        Document("stories.txt#0", "first story"),
        Document("stories.txt#1", "second é"),
        Skipped("stories.txt#2", "empty"),
        Document("stories.txt#3", "third"),
    ]


def test_separator_in_a_file_with_a_bad_byte(tmp_path: Path) -> None:
    path = tmp_path / "bad.txt"
    path.write_bytes(b"good|\xff|kept")
    before, bad, after = TextFiles(paths=[str(path)], separator="|").read()
    assert (before[1], bad[1], after[1]) == ("good", "not UTF-8", "kept")


def test_file_names_that_are_not_utf8(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.txt")).write_text("text")
    [item] = TextFiles(paths=[str(tmp_path)]).read()
    assert isinstance(item, Document)


def test_missing_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.txt.*matches no file"):
        list(TextFiles(paths=[str(tmp_path / "nothing.txt")]).read())
    with pytest.raises(ConfigError, match="paths="):
        TextFiles(paths=[])


LINES = [
    b'{"text": "one", "id": 1}',
    b"not json",
    b'{"id": 2}',
    b'{"text": ""}',
    b"",
    b'{"text": 5}',
    b'{"text": "\xff"}',
    b'{"text": "\\ud800"}',
    '{"text": "zwei \\n é"}'.encode(),
]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_json_lines(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    content = b"\n".join(LINES) + b"\n"
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    assert bare(JSONLines(paths=[str(path)]).read()) == [
        Document(f"rows{suffix}:1", "one"),
        Skipped(f"rows{suffix}:2", "not JSON"),
        Skipped(f"rows{suffix}:3", "no field 'text'"),
        Skipped(f"rows{suffix}:4", "empty"),
        Skipped(f"rows{suffix}:5", "empty"),
        Skipped(f"rows{suffix}:6", "'text' is not text"),
        Skipped(f"rows{suffix}:7", "not UTF-8"),
        Skipped(f"rows{suffix}:8", "lone surrogate"),
        Document(f"rows{suffix}:9", "zwei \n é"),
    ]


def test_json_lines_other_field(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"body": f"text {i}"}) for i in range(3)))
    items = JSONLines(paths=[str(path)], field="body").read()
    assert list(items) == [Document(f"rows.jsonl:{i + 1}", f"text {i}") for i in range(3)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    datasets = pytest.importorskip("datasets")
    directory = tmp_path_factory.mktemp("hf")
    rows = datasets.Dataset.from_dict({"text": ["one", "", "drei é", None], "n": [1, 2, 3, 4]})
    rows.save_to_disk(str(directory / "one"))
    datasets.DatasetDict({"train": rows, "test": rows.select([0])}).save_to_disk(
        str(directory / "several")
    )
    rows.to_parquet(str(directory / "files.parquet"))
    return directory


EXPECTED = [
    Document("train:0", "one"),
    Skipped("train:1", "empty"),
    Document("train:2", "drei é"),
    Skipped("train:3", "'text' is not text"),
]


@pytest.mark.parametrize("name", ["one", "several"])
def test_hugging_face_saved_to_disk(saved: Path, name: str) -> None:
    corpus = HuggingFace(path=str(saved / name))
    assert bare(corpus.read()) == EXPECTED
    assert len(corpus.units()[0].stamp) == 64


def test_hugging_face_other_split(saved: Path) -> None:
    corpus = HuggingFace(path=str(saved / "several"), split="test")
    assert list(corpus.read()) == [Document("test:0", "one")]
    with pytest.raises(DataError, match=r"split='dev'.*no such split but train, test"):
        list(HuggingFace(path=str(saved / "several"), split="dev").read())


@pytest.mark.parametrize("streaming", [False, True])
def test_hugging_face_loads_files(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path))
    directory = tmp_path / "parquet"
    directory.mkdir()
    (directory / "train.parquet").write_bytes((saved / "files.parquet").read_bytes())
    corpus = HuggingFace(path=str(directory), streaming=streaming)
    assert bare(corpus.read()) == EXPECTED


@pytest.mark.parametrize("suffix", ["parquet", "jsonl.gz"])
def test_hugging_face_loads_a_single_file(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    path = tmp_path / f"rows.{suffix}"
    lines = [{"text": "one"}, {"text": ""}, {"text": "drei é"}, {"text": None}]
    data = "\n".join(map(json.dumps, lines)).encode()
    path.write_bytes(
        gzip.compress(data) if suffix.endswith("gz") else (saved / "files.parquet").read_bytes()
    )
    assert bare(HuggingFace(path=str(path)).read()) == EXPECTED
    [unit] = HuggingFace(path=str(path), split="train[1:3]").units()
    assert (unit.start, unit.stop) == (0, 2)
    (tmp_path / "in").mkdir()
    path.rename(tmp_path / "in" / path.name)
    with pytest.raises(DataError, match=r"/in with split='dev'.*train.*correct path, name, split"):
        list(HuggingFace(path=str(tmp_path / "in"), split="dev").read())


def test_hugging_face_is_cut_by_rows(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_train.data.corpus.hugging_face.UNIT_BYTES", 40)
    corpus = HuggingFace(path=str(saved / "one"), field="{n}: {text}", where={"n": ["1", "3"]})
    assert len(corpus.units()) > 1
    assert [item.text for item in corpus.read() if isinstance(item, Document)] == [
        "1: one",
        "3: drei é",
    ]


def test_hugging_face_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DataError, match=r"path=some/where.*127\.0\.0\.1:9.*HF_HUB_OFFLINE"):
        list(HuggingFace(path="some/where").read())


def test_hugging_face_refuses_what_has_no_effect(saved: Path) -> None:
    with pytest.raises(ConfigError, match="have no effect"):
        HuggingFace(path=str(saved / "one"), revision="main")
    with pytest.raises(DataError, match=r"no column 'body' but text, n"):
        list(HuggingFace(path=str(saved / "one"), field="body").read())


def test_hugging_face_without_datasets(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"llm-train\[datasets\]"):
        list(HuggingFace(path=str(saved / "one")).read())
