"""The same against an object server on this machine, where s3fs and moto are installed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_train.checkpoint.remote import Remote, folder_at
from llm_train.checkpoint.store import CheckpointStore
from tests.checkpoint.saves import content, value_of, writer

pytest.importorskip("s3fs")
server = pytest.importorskip("moto.server")


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    import s3fs

    s3fs.S3FileSystem(skip_instance_cache=True).mkdir("checkpoints")
    yield "s3://checkpoints/runs/x"
    s3fs.S3FileSystem.clear_instance_cache()
    running.stop()


@pytest.mark.slow
def test_checkpoints_in_an_object_store(url: str, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "near", keep_last=2)
    remote = Remote(url=url, store=store)
    remote.require_free()
    for step, value in ((100, 1.0), (200, 2.0), (300, 3.0)):
        writer(store.root).write(content(step, value))
        remote.offer(store.root / f"step-{step:08d}")
        remote.finish(60)
    assert [each.step for each in remote.complete()] == [200, 300]
    shutil.rmtree(store.root)
    remote.bring_newest()
    assert value_of(store.root) == 3.0
    folder_at(url).rm_file("step-00000300-00000002/manifest.json")
    shutil.rmtree(store.root)
    remote.bring_newest()
    assert value_of(store.root) == 2.0
