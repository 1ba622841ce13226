"""Checkpoints at a URL are complete or absent there as well, and a run can live from them alone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from llm_train.checkpoint.remote import Remote
from llm_train.checkpoint.store import CheckpointStore
from llm_train.errors import CheckpointError
from llm_train.testing.checkpoints import final_state
from llm_train.testing.command import refused, run
from llm_train.testing.configs import losses, tiny, write
from tests.checkpoint.saves import content, value_of, writer

URL = "memory://bucket/run"


@pytest.fixture
def bucket() -> Iterator[Any]:
    fs = fsspec.filesystem("memory")
    yield fs
    fs.rm("/bucket", recursive=True)


def names(fs: Any) -> list[str]:
    return sorted(path.rpartition("/")[2] for path in fs.ls("/bucket/run", detail=False))


def test_a_run_goes_on_where_its_disk_is_lost(tmp_path: Path) -> None:
    bucket = tmp_path / "bucket"
    url = f"file://{bucket}"
    options = {"checkpoint__keep_last": 2, "validate_every": "3 steps"}
    plain = write(tmp_path / "plain.yaml", tiny(tmp_path / "plain", steps=8, **options))
    assert run("fit", "-c", str(plain)).code == 0
    config = tiny(tmp_path / "run", steps=8, checkpoint__remote=url, **options)
    path = str(write(tmp_path / "c.yaml", config))
    assert run("fit", "-c", path).code == 0
    kept = ["step-00000006-00000002", "step-00000008-00000003"]
    assert sorted(os.listdir(bucket)) == kept
    (bucket / kept[1] / "manifest.json").unlink()  # as if it were on its way
    shutil.rmtree(tmp_path / "run")
    done = run("fit", "-c", path, "--resume", "auto")
    assert done.code == 0, done.err
    assert "resuming from" in done.out
    assert sorted(losses(tmp_path / "run")) == [7, 8]
    expected, found = (final_state(tmp_path / name, 8) for name in ("plain", "run"))
    assert all(found[key].equal(value) for key, value in expected.items())
    assert (bucket / kept[1] / "manifest.json").exists()  # again, and whole
    again = run("fit", "-c", path)
    assert again.code == 2
    assert again.errors[0].startswith(f"checkpoint.remote={url} holds checkpoints")
    assert "--resume auto" in again.errors[0]


def test_what_is_damaged_there_is_passed_over(
    tmp_path: Path, bucket: Any, caplog: pytest.LogCaptureFixture
) -> None:
    far = Remote(url=URL, store=CheckpointStore(tmp_path / "far", keep_last=5))
    for step, value in ((100, 1.0), (200, 2.0)):
        writing = writer(tmp_path / "far")
        writing.write(content(step, value))
        far.offer(tmp_path / "far" / f"step-{step:08d}")
        far.finish(60)
    with bucket.open("/bucket/run/step-00000200-00000001/rank-00000.pt", "r+b") as file:
        file.seek(30)
        file.write(b"x")
    near = Remote(url=URL, store=CheckpointStore(tmp_path / "near"))
    near.bring_newest()
    assert value_of(tmp_path / "near") == 1.0
    assert "rank-00000.pt: crc32" in caplog.text
    assert [path.name for path in (tmp_path / "near").iterdir()] == ["step-00000100"]


def test_an_upload_that_fails_is_retried_at_the_next_save(
    tmp_path: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch, caplog, capsys
) -> None:
    remote = Remote(url=URL, store=CheckpointStore(tmp_path, keep_last=1))
    real = type(bucket).put_file

    def offline(self: Any, source: str, target: str, *rest: Any, **options: Any) -> None:
        raise ConnectionError("no route to the object server")

    monkeypatch.setattr(type(bucket), "put_file", offline)
    for step in (100, 200):
        writer(tmp_path).write(content(step, 1.0))
        remote.offer(tmp_path / f"step-{step:08d}")
        remote.finish(60)
    assert caplog.text.count("no route to the object server") == 1
    assert "is not uploaded to memory://bucket/run: no route" in capsys.readouterr().out
    assert remote.complete() == []
    assert names(bucket) == []  # what is half done takes no space
    monkeypatch.setattr(type(bucket), "put_file", real)
    writer(tmp_path).write(content(300, 1.0))
    remote.offer(tmp_path / "step-00000300")
    remote.finish(60)
    assert [each.step for each in remote.complete()] == [300]
    assert names(bucket) == ["step-00000300-00000002"]


def test_nothing_starts_over_because_the_url_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = Remote(url="memory://away/run", store=CheckpointStore(tmp_path))

    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to the object server")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "ls", offline)
    with pytest.raises(CheckpointError, match=r"checkpoint\.remote=.*no route.*reachable"):
        remote.bring_newest()
    writer(tmp_path).write(content(100, 1.0))
    remote.bring_newest()  # there is one here
    assert value_of(tmp_path) == 1.0


def test_nothing_is_deleted_there_because_the_url_does_not_answer(
    tmp_path: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = Remote(url=URL, store=CheckpointStore(tmp_path, keep_last=5))
    real = type(bucket).info

    def offline(self: Any, path: str, **options: Any) -> Any:
        if "step-00000100" in path:
            raise ConnectionError("no route to the object server")
        return real(self, path, **options)

    for step in (100, 200):
        writer(tmp_path).write(content(step, 1.0))
        remote.offer(tmp_path / f"step-{step:08d}")
        remote.finish(60)
        monkeypatch.setattr(type(bucket), "info", offline)
    monkeypatch.setattr(type(bucket), "info", real)
    assert [each.step for each in remote.complete()] == [100, 200]


@pytest.mark.parametrize("url", ["bucket/run", "s3://key:secret@bucket/run", "nowhere://x"])
def test_a_url_that_cannot_be_used_is_refused(url: str, tmp_path: Path) -> None:
    config = write(tmp_path / "c.yaml", tiny(tmp_path / "run", checkpoint__remote=url))
    (line,) = refused("check", "-c", str(config))
    assert "checkpoint.remote" in line
    assert "secret" not in line
