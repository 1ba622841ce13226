"""What ``llm-train data`` says, against the text and against what training reads."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tokenizers import normalizers

from llm_train.data import (
    Bytes,
    HashSplit,
    JSONLines,
    Mixture,
    Tokenize,
    TokenizerFile,
    TokenShards,
    TrainBPE,
    prepare,
)
from llm_train.data.audit import compression
from llm_train.data.audit.folder_difference import difference
from llm_train.data.audit.passages import passages
from llm_train.data.audit.prepared_folder import PreparedFolder
from llm_train.data.audit.statistics import statistics
from llm_train.data.audit.verification import verified
from llm_train.data.fill_in_the_middle import FillInTheMiddle
from llm_train.errors import DataError
from llm_train.testing.command import run

TEXTS = [f"Document {n} speaks of {'many ' * (n % 7)}things." for n in range(60)]
SEQUENCE, SEED = 32, 5


def folder(place: Path, texts: list[str], name: str, tokenizer: object = None) -> PreparedFolder:
    rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (place / "texts.jsonl").write_text(rows)
    recipe = Tokenize(
        corpus=JSONLines(paths=[str(place / "texts.jsonl")]),
        tokenizer=tokenizer or TrainBPE(vocab_size=300),
        split=HashSplit(fraction=0.2),
        shard_tokens=500,
    )
    prepare(recipe, place / name, progress=False)
    return PreparedFolder(str(place / name))


@pytest.fixture
def prepared(tmp_path: Path) -> PreparedFolder:
    return folder(tmp_path, TEXTS, "tokens")


def test_a_folder_gives_its_documents_back(prepared: PreparedFolder) -> None:
    found = [
        prepared.tokenizer.decode(ids.tolist())
        for split in prepared.manifest.splits
        for ids in prepared.documents(split)
    ]
    assert sorted(found) == sorted(TEXTS)


def test_passages_are_what_training_reads(prepared: PreparedFolder) -> None:
    source = TokenShards(path=str(prepared.path))
    windows = source.train_windows(SEQUENCE, SEED)
    starts = prepared.starts("train").tolist()
    for sample in (0, 1, 77):
        parts = list(passages(source, SEQUENCE, SEED, sample))
        ids = [token for part in parts for token in part.ids]
        assert ids == windows.batch([sample])[0].tolist()
        whole = np.concatenate(list(prepared.read("train")))
        assert ids == whole[parts[0].start : parts[-1].stop].tolist()
        for part in parts:
            assert part.place is None or starts[part.place.number] == part.place.start
            assert part.place is None or "texts.jsonl:" in part.place.key


def test_statistics(tmp_path: Path) -> None:
    copies = [*TEXTS, TEXTS[0], TEXTS[0]]
    found = statistics(folder(tmp_path, copies, "copies"))
    lengths = np.concatenate([split.lengths for split in found.values()])
    assert lengths.size == len(copies)
    counts = [int(split.rows["exact copies"].split()[0]) for split in found.values()]
    assert (
        sum(counts) == 2
        or "0 (" not in found["held_out"].rows["documents that are also trained on"]
    )
    assert found["train"].rows["bytes per token"] > "1"


def test_difference(prepared: PreparedFolder, tmp_path: Path) -> None:
    assert list(difference(prepared, prepared)) == []
    changed = [*TEXTS[:-1], "Something new."]
    tokenizer = Bytes()
    other = folder(tmp_path, changed, "other", tokenizer)
    lines = "\n".join(difference(prepared, other))
    assert "recipe: tokenizer: TrainBPE -> Bytes" in lines
    assert "tokenizer: " in lines
    assert lines.count("1 documents removed") == lines.count("1 documents added") == 1


@pytest.mark.parametrize("where", ["last shard", "tokenizer.json", "train.documents"])
def test_verification_reads_every_byte(prepared: PreparedFolder, where: str) -> None:
    report = verified(prepared)
    counts = [int(report[f"{split}: documents"].split(",")[0]) for split in ("train", "held_out")]
    assert sum(counts) == 60
    file = prepared.path / where
    if where == "last shard":
        file = prepared.path / prepared.manifest.splits["train"].shards[-1].name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=f"{file.name}.*--force"):
        verified(prepared)


def test_tokenizers_on_the_same_text(prepared: PreparedFolder, tmp_path: Path) -> None:
    Bytes().build(None).save(str(tmp_path / "bytes.json"))  # type: ignore[arg-type]
    texts = compression.sample_of(prepared, 1000)
    titles, best, worst = compression.table(
        [str(tmp_path / "bytes.json"), str(prepared.path)], texts
    )
    assert best[0] == str(prepared.path)
    assert worst[titles.index("bytes/token")] == "1.000"
    assert worst[titles.index("tokens")] == f"{sum(len(text) for text in texts):,}"
    assert [row[-1] for row in (best, worst)] == ["yes", "yes"]


def test_a_lowercasing_tokenizer_does_not_keep_the_text_of_its_own_folder(tmp_path: Path) -> None:
    lower = PreparedFolder(str(folder(tmp_path, TEXTS, "plain").path)).tokenizer
    lower.normalizer = normalizers.Lowercase()
    lower.save(str(tmp_path / "lower.json"))
    prepared = folder(tmp_path, TEXTS, "lower", TokenizerFile(path=str(tmp_path / "lower.json")))
    moved = json.loads((tmp_path / "lower.json").read_text())
    moved["added_tokens"].append({**moved["added_tokens"][0], "id": 70000, "content": "<|far|>"})
    (tmp_path / "moved.json").write_text(json.dumps(moved | {"normalizer": None}))
    paths = [str(prepared.path), str(tmp_path / "moved.json")]
    _, *rows = compression.table(paths, compression.sample_of(prepared, 1000))
    said = {row[0]: row[-1] for row in rows}
    assert said[paths[0]].startswith("unknown: it normalises")
    assert "another id than the file" in said[paths[1]]
    # Beyond the part on which a library is tried, too.
    _, row = compression.table([str(tmp_path / "lower.json")], ["a " * 150_000, "A"])
    assert row[-1] == "no: 1 of 2 documents change"


def test_the_difference_is_of_what_is_there(prepared: PreparedFolder, tmp_path: Path) -> None:
    shutil.copytree(prepared.path, tmp_path / "copy")
    both = run("data", "diff", str(prepared.path), str(tmp_path / "copy"))
    assert both.code == 0
    assert "SHA-256" in both.out
    shard = tmp_path / "copy" / prepared.manifest.splits["train"].shards[0].name
    content = bytearray(shard.read_bytes())
    content[9] ^= 1
    shard.write_bytes(content)
    damaged = run("data", "diff", str(prepared.path), str(tmp_path / "copy"))
    assert (damaged.code, len(damaged.errors)) == (2, 1)
    assert f"{shard} is damaged" in damaged.err


def test_passages_after_fill_in_the_middle_have_the_ids_of_their_own_documents(
    tmp_path: Path,
) -> None:
    tokenizer = PreparedFolder(str(folder(tmp_path, TEXTS, "plain").path)).tokenizer
    tokenizer.add_special_tokens(["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"])
    tokenizer.save(str(tmp_path / "fim.json"))
    code = folder(tmp_path, TEXTS, "code", TokenizerFile(path=str(tmp_path / "fim.json")))
    mixture = Mixture(
        sources={"code": TokenShards(path=str(code.path))},
        fill_in_the_middle=FillInTheMiddle(rates={"code": 0.7}),
    )
    windows, whole = mixture.train_windows(96, SEED), np.concatenate(list(code.read("train")))
    sentinels = {code.tokenizer.token_to_id(f"<|fim_{n}|>") for n in ("prefix", "suffix", "middle")}
    rearranged = 0
    for sample in range(20):
        parts = list(passages(mixture, 96, SEED, sample))
        ids = [token for part in parts for token in part.ids]
        assert ids == windows.batch([sample])[0].tolist()
        for part in parts[:-1]:  # the last is cut off by the end of the window
            own = [token for token in part.ids if token not in sentinels]
            assert sorted(own) == sorted(whole[part.start : part.stop].tolist())
            assert part.place is not None
            assert part.place.start <= part.start
            rearranged += len(part.ids) - len(own) == 3
    assert rearranged > 20


def test_passages_of_a_mixture_name_their_source(tmp_path: Path) -> None:
    sources = {
        name: TokenShards(path=str(folder(tmp_path, texts, name, Bytes()).path))
        for name, texts in (("even", TEXTS[::2]), ("odd", TEXTS[1::2]))
    }
    mixture = Mixture(sources=sources)
    windows = mixture.train_windows(SEQUENCE, SEED)
    seen = set()
    for sample in range(4):
        parts = list(passages(mixture, SEQUENCE, SEED, sample))
        assert [token for part in parts for token in part.ids] == windows.batch([sample])[
            0
        ].tolist()
        for part in parts:
            assert part.place is not None
            whole = np.concatenate(list(PreparedFolder(str(tmp_path / part.source)).read("train")))
            assert part.ids == whole[part.start : part.stop].tolist()
            seen.add(part.source)
    assert seen == {"even", "odd"}
