"""The store equals a plain model of its rules and survives every kind of damage."""

import errno
import json
import os
import random
import shutil
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pytest

from llm_train.checkpoint import manifest
from llm_train.checkpoint.compatibility import require_weights
from llm_train.checkpoint.store import CheckpointStore, Found
from llm_train.errors import CheckpointError

STATE = "state/__0_0.distcp"
MANIFEST = "manifest.json"
UNREADABLE = "manifest.json is unreadable ("


def save(store: CheckpointStore, step: int, content: str = "") -> Path:
    stage = store.stage(step)
    (stage / "state").mkdir()
    (stage / "state" / "__0_0.distcp").write_bytes(content.encode() or os.urandom(1000))
    (stage / "position.json").write_text(f'{{"samples": {step}}}')
    return store.commit(step, {"step": step, "content": content})


def test_a_checkpoint_comes_back_with_its_metadata(tmp_path):
    store = CheckpointStore(tmp_path / "run" / "checkpoints")
    path = save(store, 200, "a")
    about = manifest.read(path)
    assert about.metadata == {"step": 200, "content": "a"}
    assert sorted(about.files) == ["position.json", STATE]
    assert about.files[STATE].bytes == 1
    assert store.newest() == Found(path)
    assert [p.name for p in store.root.iterdir()] == ["step-00000200"]


def test_metadata_with_odd_keys_and_values_survive(tmp_path):
    store = CheckpointStore(tmp_path)
    store.stage(1)
    path = store.commit(1, {"by rank": {10: 1.5, 9: None}, "pair": (1, "ü"), "loss": float("nan")})
    assert manifest.problems(path) == []
    metadata = manifest.read(path).metadata
    assert metadata["by rank"] == {"10": 1.5, "9": None}
    assert metadata["pair"] == [1, "ü"]


def test_a_leftover_stage_is_emptied_and_clean_removes_it(tmp_path):
    store = CheckpointStore(tmp_path)
    (store.stage(5) / "old").write_text("x")
    assert list(store.stage(5).iterdir()) == []
    (tmp_path / ".deleting-step-00000001").mkdir()
    (tmp_path / "notes").mkdir()
    store.clean()
    assert [p.name for p in tmp_path.iterdir()] == ["notes"]
    CheckpointStore(tmp_path / "absent").clean()


@pytest.mark.parametrize("seed", range(8))
def test_pruning_equals_a_plain_model(tmp_path, seed):
    """Also where a run went back: the last written is the newest, whatever its step."""
    draw = random.Random(seed)
    keep_last, keep_every = draw.randint(1, 4), draw.choice([0, 0, 20, 30])
    store = CheckpointStore(tmp_path, keep_last, keep_every)
    kept: list[int] = []  # in the order of saving them
    step = 0
    for _ in range(25):
        if draw.random() < 0.15 and kept:
            step = draw.choice(kept)  # resume; perhaps save a step again
        else:
            step += 10
        save(store, step, f"{step}")
        kept = [*(k for k in kept if k != step), step]
        kept = [
            k
            for position, k in enumerate(kept)
            if position >= len(kept) - keep_last or (keep_every and k % keep_every == 0)
        ]
        assert store.steps() == sorted(kept)
        assert store.newest().path == tmp_path / f"step-{step:08d}"
    assert all(not p.name.startswith(".") for p in tmp_path.iterdir())


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def filled(content: bytes) -> Callable[[Path], int]:
    return lambda path: path.write_bytes(content)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "name", "reason"),
    [
        (truncate, STATE, f"{STATE}: 999 bytes, not 1000"),
        (filled(bytes(1007)), STATE, f"{STATE}: 1007 bytes, not 1000"),
        (flip, STATE, f"{STATE}: crc32 "),
        (Path.unlink, STATE, f"{STATE}: missing"),
        (lambda p: shutil.rmtree(p.parent), STATE, f"{STATE}: missing"),
        (Path.unlink, MANIFEST, "no manifest.json"),
        (cut, MANIFEST, UNREADABLE),
        (filled(b""), MANIFEST, UNREADABLE),
        (filled(b"\xff\x00"), MANIFEST, UNREADABLE),
        (filled(b"[1, 2]"), MANIFEST, UNREADABLE),
        (filled(b"17"), MANIFEST, UNREADABLE),
        (filled(b'{"crc32": 1}'), MANIFEST, "manifest.json has format None"),
    ],
)
def test_a_damaged_checkpoint_is_skipped_with_its_reason(tmp_path, harm, name, reason):
    store = CheckpointStore(tmp_path)
    old, new = save(store, 200), save(store, 400)
    harm(new / name)
    found = store.newest()
    assert found.path == old
    [(path, why)] = found.skipped
    assert path == new
    assert why.startswith(reason)
    assert "\n" not in why
    with pytest.raises(CheckpointError) as caught:
        store.resolve(str(new))
    assert str(caught.value).startswith(f"{new} holds no complete checkpoint; found: {new.name} (")
    assert f"({why}); take another one, or auto" in str(caught.value)


def test_every_flipped_bit_of_the_manifest_is_seen_or_harmless(tmp_path):
    store = CheckpointStore(tmp_path)
    path = save(store, 200, "content")
    file, written = path / "manifest.json", manifest.read(path)
    good = file.read_bytes()
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 1 << (position % 8)
        file.write_bytes(bad)
        if not manifest.problems(path):
            assert manifest.read(path) == written


FORGED = [
    *({"sequence": -1}, {"sequence": "x"}, {"files": [1]}, {"files": {"a": {"bytes": -1}}}),
    *({"files": {"../a": {"bytes": 1, "crc32": 1}}}, {"metadata": None}),
]


@pytest.mark.parametrize("values", FORGED)
def test_a_forged_manifest_with_a_right_checksum_is_refused(tmp_path, values):
    path = save(CheckpointStore(tmp_path), 1)
    body = {**json.loads((path / manifest.NAME).read_text()), **values}
    del body["crc32"]
    (path / manifest.NAME).write_text(json.dumps({**body, "crc32": manifest._crc32_of(body)}))
    with pytest.raises(CheckpointError, match=r"manifest\.json is not one of a checkpoint: "):
        manifest.read(path)


GOOD = {
    **dict.fromkeys(("step", "world_size", "seed", "sequence", "samples_per_step"), 1),
    **dict.fromkeys(("strategy", "state_format", "optimizer"), "x"),
    "data": {"consumed": 1, "fingerprint": ""},
    "stages": [[0, 1]],
    "learning_rate": 0.1,
}


@pytest.mark.parametrize("values", [{"step": -1}, {"data": {"consumed": "x"}}, {"seed": True}])
def test_forged_metadata_of_a_run_is_refused(values):
    require_weights(Path(), GOOD)
    with pytest.raises(CheckpointError, match=f"{next(iter(values))}.*; resume from another"):
        require_weights(Path(), {**GOOD, **values})
    with pytest.raises(CheckpointError, match="it has no step"):
        require_weights(Path(), {n: v for n, v in GOOD.items() if n != "step"})


def test_old_damage_is_not_reported_once_a_newer_one_is_good(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=3)
    broken = save(store, 200)
    (broken / "manifest.json").unlink()
    save(store, 400)
    assert store.newest().skipped == []
    (tmp_path / "step-00000600").mkdir()
    assert store.newest().skipped == [(tmp_path / "step-00000600", "no manifest.json")]


def test_other_files_alongside_do_not_matter(tmp_path):
    path = save(CheckpointStore(tmp_path), 200)
    (path / "notes.txt").write_text("good one")
    assert manifest.problems(path) == []


def test_resolve(tmp_path):
    run = tmp_path / "run"
    store = CheckpointStore(run / "checkpoints")
    assert store.resolve("auto").path is None
    with pytest.raises(CheckpointError, match=r"run does not exist .* give a checkpoint"):
        store.resolve(run)
    path = save(store, 200)
    for where in ("auto", str(path), run, run / "checkpoints"):
        assert store.resolve(where).path == path
    truncate(path / STATE)
    (tmp_path / "empty").mkdir()
    for where, message in (
        ("auto", rf"checkpoints holds no complete .* step-00000200 \({STATE}: 999 bytes"),
        (run, rf"run holds no complete .* step-00000200 \({STATE}: 999 bytes"),
        (tmp_path / "empty", "empty holds no complete checkpoint; found: nothing"),
        (path / "position.json", "is not a directory; give a checkpoint"),
    ):
        with pytest.raises(CheckpointError, match=message):
            store.resolve(where)


def test_many_problems_make_a_short_line():
    found = [f"{index:02d}: missing" for index in range(50)]
    assert manifest.summary(found) == "00: missing; 01: missing; 02: missing; and 47 more"


@pytest.fixture
def failing(monkeypatch):
    """Makes a function raise an error of the operating system within a context."""

    @contextmanager
    def fail_in(module, name, code):
        def fail(*_: object, **__: object) -> None:
            raise OSError(code, os.strerror(code))

        with monkeypatch.context() as patch:
            patch.setattr(module, name, fail)
            yield

    return fail_in


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EACCES])
@pytest.mark.parametrize("step", [400, 200], ids=["next", "replacing"])
def test_a_failed_save_says_so_and_leaves_the_old_one(tmp_path, failing, call, error, step):
    store = CheckpointStore(tmp_path, keep_last=1)
    old = save(store, 200, "old")
    message = rf"cannot save step {step} in .*{os.strerror(error)}; the checkpoints saved"
    with failing(os, call, error), pytest.raises(CheckpointError, match=message):
        save(store, step, "new")
    assert store.newest().path == old
    assert manifest.read(old).metadata["content"] == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000200"]
    assert save(store, step) == store.newest().path


def test_a_stage_that_cannot_be_made_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot save step 1 in .*Not a directory"):
        CheckpointStore(tmp_path / "file" / "checkpoints").stage(1)


def test_a_checkpoint_that_cannot_be_deleted_does_not_stop_the_save(tmp_path, failing, caplog):
    store = CheckpointStore(tmp_path, keep_last=1)
    save(store, 200)
    with failing(os, "rmdir", errno.EACCES):
        assert save(store, 400) == store.newest().path
    assert "cannot delete the old checkpoint" in caplog.text


def test_a_checkpoint_whose_link_leads_nowhere_is_named_and_stays(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=1)
    old = save(store, 200)
    (tmp_path / "step-00000400").symlink_to("not-mounted")
    assert store.newest() == Found(old, [(tmp_path / "step-00000400", "no manifest.json")])
    assert save(store, 600) == store.newest().path
    assert store.steps() == [400, 600]
