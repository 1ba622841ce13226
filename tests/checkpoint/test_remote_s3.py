"""The same against an object server on this machine, where s3fs and moto are installed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from llm_train.checkpoint.remote import Remote, folder_at
from llm_train.checkpoint.store import CheckpointStore
from tests.checkpoint.saves import content, value_of, writer


@pytest.fixture
def url(object_server: Any) -> str:
    import s3fs

    s3fs.S3FileSystem(skip_instance_cache=True).mkdir("checkpoints")
    return "s3://checkpoints/runs/x"


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
