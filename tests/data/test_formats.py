"""Formats, compressions and archives, whole and broken: text, or one line that names the file."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import re
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

import llm_train.data
from llm_train.data import Corpus, Document, Files, JSONLines, Skipped, TextFiles
from llm_train.errors import ConfigError, DataError

pyarrow = pytest.importorskip("pyarrow")
zstandard = pytest.importorskip("zstandard")

TEXTS = ["one", "zwei é\r\n", 'three\nlines, with "quotes"', "x" * 3000]
ROWS = [{"id": number, "text": text} for number, text in enumerate(TEXTS)]


def table(delimiter: str) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, ["id", "text"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return out.getvalue().encode()


def parquet(rows: list[dict[str, Any]] = ROWS, group: int = 2) -> bytes:
    from pyarrow.parquet import write_table

    out = io.BytesIO()
    write_table(pyarrow.Table.from_pylist(rows), out, row_group_size=group)
    return out.getvalue()


def arrow(start: Callable[..., Any]) -> bytes:
    out = io.BytesIO()
    rows = pyarrow.Table.from_pylist(ROWS)
    with start(out, rows.schema) as writer:
        writer.write_table(rows, max_chunksize=3)
    return out.getvalue()


def zipped(data: bytes, name: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
        archive.writestr("__MACOSX/._x", b"\0")
    return out.getvalue()


def tarred(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


LINES = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)
FORMATS: dict[str, Callable[[], bytes]] = {
    "a.txt": lambda: "<|end|>".join(TEXTS).encode(),
    "a.jsonl": lambda: LINES,
    "a.json": lambda: json.dumps(ROWS).encode(),
    "b.json": lambda: json.dumps(ROWS, indent=1, ensure_ascii=False).encode(),
    "c.json": lambda: b"\n".join(json.dumps(row, indent=1).encode() for row in ROWS),
    "a.csv": lambda: table(","),
    "a.tsv": lambda: table("\t"),
    "a.parquet": parquet,
    "a.arrow": lambda: arrow(pyarrow.ipc.new_stream),
    "a.feather": lambda: arrow(pyarrow.ipc.new_file),
}
PACKED: dict[str, Callable[[bytes, str], bytes]] = {
    "{}": lambda data, name: data,
    "{}.gz": lambda data, name: gzip.compress(data[:99]) + gzip.compress(data[99:]),
    "{}.bz2": lambda data, name: bz2.compress(data),
    "{}.xz": lambda data, name: lzma.compress(data),
    "{}.zst": lambda data, name: zstandard.compress(data[:99]) + zstandard.compress(data[99:]),
    "{}.zip": zipped,
    "{}.tar": lambda data, name: tarred({name: data}),
    "{}.tgz": lambda data, name: gzip.compress(tarred({f"in/{name}": data})),
    "no-suffix-{}": lambda data, name: data,
}


def written(folder: Path, name: str, data: bytes) -> str:
    (folder / name).write_bytes(data)
    return str(folder / name)


def texts(corpus: Corpus) -> list[str]:
    items = list(corpus.read())
    assert all(isinstance(item, Document) for item in items), items
    assert len({item.key for item in items}) == len(items)
    return [item.text for item in items if isinstance(item, Document)]


@pytest.mark.parametrize("pack", PACKED)
@pytest.mark.parametrize("name", FORMATS)
def test_whole_files(tmp_path: Path, name: str, pack: str) -> None:
    data = PACKED[pack](FORMATS[name](), name)
    path = written(tmp_path, pack.format(name), data)
    assert texts(Files(paths=[path], separator="<|end|>")) == TEXTS


BROKEN: dict[str, tuple[bytes, str]] = {
    "cut.jsonl.gz": (gzip.compress(LINES)[:-20], "download it again"),
    "cut.jsonl.bz2": (bz2.compress(LINES)[:-20], "download it again"),
    "cut.jsonl.xz": (lzma.compress(LINES)[:-20], "download it again"),
    "cut.jsonl.zst": (zstandard.compress(LINES)[:-20], "download it again"),
    "cut.zip": (zipped(LINES, "a.jsonl")[:-30], "download it again"),
    "cut.tar": (tarred({"a.jsonl": LINES})[:2000], "download it again"),
    "cut-at-a-member.tar": (tarred({"a.txt": b"x" * 512})[:1024], "too early"),
    "cut.parquet": (parquet()[:-20], "download it again"),
    "cut.arrow": (arrow(pyarrow.ipc.new_stream)[:-600], "download it again"),
    "cut.json": (json.dumps(ROWS).encode()[:-20], "value 3 is not JSON"),
    "wrong.json": (json.dumps(ROWS).replace("three", '"').encode(), "value 2 is not JSON"),
    "deep.json": (b"[{" + b'"x":[' * 1 + b"[" * 200_000, "recursion"),
    "damaged.jsonl.gz": (gzip.compress(LINES)[:50] + b"\0" * 200, "download it again"),
    "page.jsonl.gz": (b"<html>not found</html>", "download it again"),
    "gzip.jsonl.zst": (gzip.compress(LINES), "is gzip, and .zst says zstd"),
    "text.parquet": (LINES, "and .parquet says Parquet"),
    "other.csv": (b"id,body\n1,x\n", r"no column 'text' but id, body"),
    "other.parquet": (parquet([{"body": "x"}]), r"no column 'text' but body"),
    "quote.csv": (b'id,text\n1,"x\n' + b"y\n" * 1000, "field limit"),
    "utf16.txt": ("text".encode("utf-16"), "set encoding: utf-16"),
    "locked.zip": (b"", "password"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_one_line(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm_train.data.corpus.formats.text.LONGEST_BYTES", 1000)
    data, remedy = BROKEN[name]
    if name == "locked.zip":  # Python does not encrypt; the bit that says so is enough
        data = zipped(LINES, "a.jsonl").replace(
            b"PK\x01\x02\x14\x03\x14\0\0", b"PK\x01\x02\x14\x03\x14\0\1"
        )
    path = written(tmp_path, name, data)
    with pytest.raises(DataError, match=remedy) as caught:
        list(Files(paths=[path]).read())
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


SPOILED: dict[str, tuple[bytes, list[str]]] = {
    "a.txt": (b"good|b\xffd||fine", ["good", "not UTF-8", "empty", "fine"]),
    "a.jsonl": (
        b'\xef\xbb\xbf{"text": "good"}\n{"text": "b\xffd"}\n{"text": "cut\n\n{"text": null}\n[1]\n'
        b'{"text": "half \\ud83d"}\n{"id": 1}\n{"text":"x","m":' + b"[" * 100_000 + b"\n"
        b'{"text":"nan","m":NaN}',
        [
            *("good", "not UTF-8", "not JSON", "empty", "'text' is not text", "not an object"),
            *("lone surrogate", "no field 'text'", "not JSON", "nan"),
        ],
    ),
    "a.json": (b'[{"text":"good"},{"text":"b\xffd"},3]', ["good", "not UTF-8", "not an object"]),
    "a.csv": (
        b"\xef\xbb\xbftext;n\ngood;1\nb\xffd;2\nshort\n;3\n",
        ["good", "not UTF-8", "another number of columns than the header", "empty"],
    ),
    "a.parquet": (b"", ["good", "not UTF-8", "'text' is not text", "fine"]),
    "a.tar": (
        tarred(
            {"1.txt": b"good", "1.json": b'{"n": 1}', "1.jpg": b"\xff\xd8\0\0", "2.txt": b"\xff"}
        ),
        ["good", "no field 'text'", "neither text nor a known format", "not UTF-8"],
    ),
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_bad_document_spoils_itself_only(tmp_path: Path, name: str) -> None:
    data, expected = SPOILED[name]
    if name == "a.parquet":
        cells = pyarrow.array([b"good", b"b\xffd", None, b"fine"], pyarrow.binary())
        out = io.BytesIO()
        from pyarrow.parquet import write_table

        write_table(pyarrow.table({"text": cells.view(pyarrow.string())}), out)
        data = out.getvalue()
    path = written(tmp_path, name, data)
    items = list(Files(paths=[path], separator="|").read())
    found = [item.reason if isinstance(item, Skipped) else item.text for item in items]
    assert found == expected
    assert all(item.key.startswith(name) for item in items)


def test_what_was_found_instead_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", b'{"id": 1, "data": {"body": "x"}}\n')
    [item] = JSONLines(paths=[path]).read()
    assert item == Skipped("a.jsonl:1", "no field 'text'", "it has id, data.body")


def test_nested_fields_templates_and_chosen_rows(tmp_path: Path) -> None:
    rows = [
        {
            "title": "T",
            "data": {"parts": [{"text": "a"}]},
            "year": 1999,
            "lang": "en",
            "x.y": "dot",
        },
        {
            "title": "U",
            "data": {"parts": [{"text": "b"}]},
            "year": 2000,
            "lang": "fr",
            "x.y": "dot",
        },
        {"title": None, "data": {"parts": []}, "year": 0, "lang": "en", "x.y": ""},
    ]
    files = {
        "a.jsonl": b"\n".join(json.dumps(row).encode() for row in rows),
        "a.parquet": parquet(rows),
    }
    for name, data in files.items():
        paths = [written(tmp_path, name, data)]
        for field, expected in (
            ("data.parts.0.text", ["a", "b"]),
            ("x.y", ["dot", "dot"]),
            (
                "{title} ({year})\n\n{data.parts.0.text} {{}}",
                ["T (1999)\n\na {}", "U (2000)\n\nb {}"],
            ),
        ):
            found = list(Files(paths=paths, field=field).read())
            assert [item.text for item in found if isinstance(item, Document)] == expected
            assert isinstance(found[2], Skipped)
        chosen = list(Files(paths=paths, field="title", where={"lang": ["fr", "de"]}).read())
        assert [type(item) for item in chosen] == [Skipped, Document, Skipped]
        assert chosen[0][1] == "'lang' is not fr or de"
    for field in ("", "{", "{} x", "{a!r}", "{a:>3}"):
        with pytest.raises(ConfigError, match="field="):
            JSONLines(paths=["x"], field=field)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "cp1252", "utf-8-sig"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    rows = "".join(
        json.dumps({"text": "Füße und Käse " * 40}, ensure_ascii=False) + "\n" for _ in "ab"
    )
    path = written(tmp_path, "a.jsonl", rows.encode(encoding))
    for stated in {encoding, "auto"} - ({"auto"} if encoding == "utf-16-be" else set()):
        assert texts(JSONLines(paths=[path], encoding=stated)) == ["Füße und Käse " * 40] * 2
    text = written(tmp_path, "b.txt", "Füße".encode(encoding))
    assert texts(TextFiles(paths=[text], encoding=encoding)) == ["Füße"]
    with pytest.raises(ConfigError, match="encoding=utf-9"):
        TextFiles(paths=[path], encoding="utf-9")


def test_a_separator_from_a_shell(tmp_path: Path) -> None:
    path = written(tmp_path, "a.txt", b"one\ntwo\nthree")
    assert texts(TextFiles(paths=[path], separator=r"\n")) == ["one", "two", "three"]


def test_text_is_not_read_from_tables(tmp_path: Path) -> None:
    for corpus in (TextFiles, JSONLines, partial(Files, format="csv")):
        with pytest.raises(DataError, match=r"a\.jsonl is Parquet.*Files"):
            list(corpus(paths=[written(tmp_path, "a.jsonl", parquet())]).read())


def test_members_of_archives_are_chosen_by_pattern(tmp_path: Path) -> None:
    members = {"1.txt": b"one", "1.json": b'{"caption": "c"}', "2.txt": b"two"}
    path = written(tmp_path, "a.tar", tarred(members))
    assert list(Files(paths=[path], members="*.txt").read()) == [
        Document("a.tar!1.txt", "one"),
        Document("a.tar!2.txt", "two"),
    ]


def test_files_of_one_name_have_keys_of_their_own(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        written(tmp_path / folder, "a.txt", folder.encode())
    corpus = TextFiles(paths=[str(tmp_path / "x"), str(tmp_path / "y")])
    assert [item.key for item in corpus.read()] == ["0/a.txt", "1/a.txt"]


def test_units_hold_every_document_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_train.data.corpus.files.UNIT_BYTES", 700)
    rows = [{"text": f"{number} " * (1 + number % 90)} for number in range(1, 200)]
    lines = b"\n".join(json.dumps(row).encode() for row in rows)
    lines = codecs.BOM_UTF8 + lines
    files = {"a.jsonl": lines, "b.parquet": parquet(rows, group=20), "c.jsonl": LINES}
    for name, data in files.items():
        written(tmp_path, name, data)
    corpus = Files(paths=[str(tmp_path)])
    units = corpus.units()
    assert len({unit.name for unit in units}) == len(units) > 10
    assert corpus.units() == units
    found = [item.text for unit in units for item in corpus.documents(unit)]
    assert found[:-4] == [row["text"] for row in rows] * 2
    assert len({item.key for item in corpus.read()}) == len(found)
    written(tmp_path, "a.jsonl", lines.replace(b"7", b"8"))
    changed = [a.stamp != b.stamp for a, b in zip(units, corpus.units(), strict=True)]
    assert any(changed)
    assert not all(changed)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    handler = partial(Quiet, directory=str(tmp_path))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_files_at_a_web_address(tmp_path: Path, address: str) -> None:
    pytest.importorskip("aiohttp")
    written(tmp_path, "a.jsonl.gz", gzip.compress(LINES))
    corpus = Files(paths=[f"{address}/a.jsonl.gz"])
    assert texts(corpus) == TEXTS
    assert next(corpus.read()).key == "a.jsonl.gz:1"
    with pytest.raises(DataError, match=r"b\.jsonl.*matches no file"):
        list(Files(paths=[f"{address}/b.jsonl"]).read())
    with pytest.raises(DataError, match=r"127\.0\.0\.1:9/a.*cannot be reached.*network"):
        list(Files(paths=["http://127.0.0.1:9/a.jsonl"]).read())
    with pytest.raises(ConfigError, match=r"nowhere://a.*fsspec"):
        list(Files(paths=["nowhere://a"]).read())


@pytest.mark.slow
def test_files_in_an_object_store(object_server: Any) -> None:
    import s3fs

    files = s3fs.S3FileSystem(skip_instance_cache=True)
    files.mkdir("texts")
    for name, make in FORMATS.items():
        for pack in ("{}", "{}.zst", "{}.zip", "{}.tgz"):
            files.pipe(f"texts/in/{pack.format(name)}", PACKED[pack](make(), name))
    corpus = Files(paths=["s3://texts/in"], separator="<|end|>")
    assert texts(corpus) == TEXTS * 40
    before = corpus.provenance()
    files.pipe("texts/in/a.jsonl", LINES.replace(b"one", b"two"))
    assert corpus.provenance() != before
    assert len(texts(Files(paths=["s3://texts/**/a.csv*"]))) == 16
    with pytest.raises(DataError, match="matches no file"):
        list(Files(paths=["s3://texts/none/*.txt"]).read())


def test_the_examples_of_the_page_are_corpora() -> None:
    page = Path(__file__).parents[2] / "docs" / "data" / "sources.md"
    blocks = re.findall(r"```yaml\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    found = [yaml.safe_load(block) for block in blocks]
    found[0] = found[0]["data"]["recipe"]["init_args"]

    def build(part: dict[str, Any]) -> object:
        arguments = part.get("init_args", {})
        for name, value in arguments.items():
            if name == "filters":
                arguments[name] = [build(each) for each in value]
            elif name == "corpus":
                arguments[name] = build(value)
        return getattr(llm_train.data, part["class_path"])(**arguments)

    assert len([build(each["corpus"]) for each in found]) > 15
