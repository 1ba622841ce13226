"""Training from object storage: the same windows through a cache of bounded size."""

import pickle
import threading
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem

from llm_train.data import TokenShards, remote_folder, remote_shards
from llm_train.data.remote_folder import RemoteFolder, ShardCache
from llm_train.errors import ConfigError, DataError
from llm_train.testing.configs import part, tiny, write
from llm_train.testing.fork_server import ForkServer
from llm_train.trainer.logger.records import read_lines
from tests.data.test_damage import prepared


class Unsteady(LocalFileSystem):
    """A local folder behind a network that fails as often as it is told to."""

    protocol = "unsteady"
    failures = 0
    requests: list[tuple[str, int]] = []  # noqa: RUF012 - of the test

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return LocalFileSystem._strip_protocol(path.removeprefix("unsteady://"))

    def cat_file(self, path, start=None, end=None, **kwargs):  # type: ignore[no-untyped-def]
        if Unsteady.failures:
            Unsteady.failures -= 1
            raise ConnectionResetError("connection reset by peer")
        Unsteady.requests.append((path.rpartition("/")[2], start or 0))
        return super().cat_file(path, start, end, **kwargs)


@pytest.fixture
def unsteady(monkeypatch: pytest.MonkeyPatch) -> type[Unsteady]:
    fsspec.register_implementation("unsteady", Unsteady, clobber=True)
    monkeypatch.setattr(remote_folder, "_PAUSES", (0.001, 0.001))
    Unsteady.failures, Unsteady.requests = 0, []
    return Unsteady


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some 2 MB in shards of a few blocks."""
    return prepared(tmp_path_factory.mktemp("remote") / "tokens", 1_000_000, shard_tokens=100_000)


def used(cache: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in cache.glob("*.bin"))


def remote(folder: Path, cache: Path, gib: float = 1.0) -> TokenShards:
    return TokenShards(path=f"unsteady://{folder}", cache=ShardCache(folder=str(cache), gib=gib))


def test_the_same_windows_each_block_fetched_once(
    folder: Path, tmp_path: Path, unsteady: type[Unsteady]
) -> None:
    near, far = TokenShards(path=str(folder)), remote(folder, tmp_path / "cache")
    assert far.check() == []
    assert far.fingerprint() == near.fingerprint()
    assert far.tokenizer_text() == near.tokenizer_text()
    ours, theirs = far.train_windows(128, 1), near.train_windows(128, 1)
    for first in range(0, 800, 8):
        indices = first + np.arange(8)
        assert np.array_equal(ours.batch(indices), theirs.batch(indices))
    ours, theirs = far.held_out_windows(128), near.held_out_windows(128)
    everything = np.arange(len(theirs))
    assert np.array_equal(ours.batch(everything), theirs.batch(everything))
    blocks = [request for request in unsteady.requests if request[0].endswith(".bin")]
    assert len(blocks) == len(set(blocks)) > 20
    # Another process, or the same after a crash, finds them there.
    unsteady.requests.clear()
    again = pickle.loads(pickle.dumps(remote(folder, tmp_path / "cache").train_windows(128, 1)))
    assert again.batch([3, 5]).tolist() == near.train_windows(128, 1).batch([3, 5]).tolist()
    assert not [name for name, _ in unsteady.requests if name.endswith(".bin")]
    # What was damaged in the cache is fetched again.
    victim = tmp_path / "cache" / "train-00000.bin"
    victim.write_bytes(bytes(victim.stat().st_size))
    again = remote(folder, tmp_path / "cache").train_windows(128, 1)
    rows = np.arange(200)
    assert np.array_equal(again.batch(rows), near.train_windows(128, 1).batch(rows))


def test_a_web_server_lists_names_without_sizes(
    folder: Path, tmp_path: Path, unsteady: type[Unsteady], monkeypatch: pytest.MonkeyPatch
) -> None:
    def listed(fs: Unsteady, path: str, **_: Any) -> list[dict[str, Any]]:
        return [{"name": each, "size": None} for each in LocalFileSystem.ls(fs, path)]

    monkeypatch.setattr(unsteady, "ls", listed)
    assert remote(folder, tmp_path / "cache").check() == []
    monkeypatch.setattr(unsteady, "size", lambda fs, path: 5)
    (problem,) = remote(folder, tmp_path / "other").check()
    assert "has 5 bytes, its manifest says" in problem


def test_a_server_that_sends_whole_files(
    folder: Path, tmp_path: Path, unsteady: type[Unsteady], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = remote(folder, tmp_path / "cache").train_windows(128, 1)
    monkeypatch.setattr(
        unsteady, "cat_file", lambda fs, path, **_: LocalFileSystem.cat_file(fs, path)
    )
    with pytest.raises(DataError, match="must answer requests for ranges"):
        whole.batch([0])


def test_the_cache_is_bounded_whoever_shares_it(
    folder: Path, tmp_path: Path, unsteady: type[Unsteady]
) -> None:
    limit = 1 << 20
    cache, near = tmp_path / "cache", TokenShards(path=str(folder)).train_windows(128, 1)
    pair = [remote(folder, cache, limit / (1 << 30)).train_windows(128, 1) for _ in range(2)]
    most = 0
    for first in range(0, 1000, 8):
        for turn, windows in enumerate(pair):
            indices = first * (turn + 1) + np.arange(8)
            assert np.array_equal(windows.batch(indices), near.batch(indices))
        most = max(most, used(cache))
    assert limit / 2 < most < limit + 64 * (1 << 16)


def test_a_network_that_fails(
    folder: Path, tmp_path: Path, unsteady: type[Unsteady], caplog: pytest.LogCaptureFixture
) -> None:
    source = remote(folder, tmp_path / "cache")
    windows = source.train_windows(128, 1)
    unsteady.failures = 2
    assert windows.batch([0]).shape == (1, 129)
    unsteady.failures = 10**9
    with pytest.raises(DataError) as caught:
        windows.batch(np.arange(300))
    assert "connection reset by peer; continue with --resume auto" in str(caught.value)
    [problem] = remote(folder, tmp_path / "other").check()
    assert "is out of reach: connection reset by peer" in problem
    unsteady.failures = 0
    [problem] = remote(folder / "none", tmp_path / "other").check()
    assert "manifest.json does not exist; correct data.source.path" in problem
    [problem] = TokenShards(path="nothing://a/b", cache=ShardCache(folder=str(tmp_path))).check()
    assert "llm-train[remote]" in problem
    with pytest.raises(ConfigError, match="cache has no effect"):
        TokenShards(path=str(folder), cache=ShardCache(gib=1))


def test_a_slow_network_is_named(
    folder: Path, tmp_path: Path, unsteady: type[Unsteady], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    windows = remote(folder, tmp_path / "cache").train_windows(128, 1)
    go, cat = threading.Event(), LocalFileSystem.cat_file
    monkeypatch.setattr(remote_shards, "_PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(LocalFileSystem, "cat_file", lambda *a, **k: go.wait() and cat(*a, **k))
    threading.Timer(0.3, go.set).start()
    windows.batch([0])
    assert "waiting for unsteady://" in caplog.text


def test_damage_at_the_source_is_no_matter_of_the_network(
    folder: Path, tmp_path: Path, unsteady: type[Unsteady]
) -> None:
    source = remote(folder, tmp_path / "cache")
    windows = source.train_windows(128, 1)
    manifest = RemoteFolder(f"unsteady://{folder}", source.cache).mirror()
    victim = folder / manifest.splits["train"].shards[0].name
    content = victim.read_bytes()
    try:
        victim.write_bytes(bytes(len(content)))
        with pytest.raises(DataError, match=f"{victim.name}.* damaged"):
            windows.batch(np.arange(500))
    finally:
        victim.write_bytes(content)


@pytest.mark.distributed
def test_killed_and_resumed_from_a_url(
    folder: Path, tmp_path: Path, fork_server: ForkServer
) -> None:
    """Its losses are those of a run from disk, and the cache is bounded."""

    def arguments(name: str, **source: object) -> list[str]:
        run = tiny(
            tmp_path / name,
            steps=40,
            checkpoint__every="5 steps",
            validate_every="20 steps",
            data__source=part("TokenShards", **source),
            model__network__init_args__dropout=0.0,  # which would differ with the ranks
        )
        return ["fit", "-c", str(write(tmp_path / f"{name}.yaml", run)), "--resume", "auto"]

    def losses(name: str) -> dict[int, float]:
        rows = read_lines(tmp_path / name / "metrics.jsonl")
        return {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}

    near = arguments("near", path=str(folder))
    cache = {"folder": str(tmp_path / "cache"), "gib": 1e-3}
    far = arguments("far", path=f"file://{folder}", cache=cache)
    logs = [tmp_path / f"{n}.txt" for n in range(3)]
    assert fork_server.run(*near, ranks=1, log=logs[0]) == [0], logs[0].read_text()
    metrics = tmp_path / "far" / "metrics.jsonl"
    killed = fork_server.run(*far, ranks=2, log=logs[1], metrics=metrics, step=15)
    assert killed == [-9, -9], logs[1].read_text()
    assert fork_server.run(*far, ranks=1, log=logs[2]) == [0], logs[2].read_text()
    assert losses("far") == pytest.approx(losses("near"), rel=1e-5)
    assert used(tmp_path / "cache") < 2 << 20


@pytest.mark.slow
def test_from_an_object_server(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, object_server: Any
) -> None:
    import s3fs

    fs = s3fs.S3FileSystem(skip_instance_cache=True)
    fs.mkdir("corpora")
    fs.put(str(folder), "corpora/tokens", recursive=True)
    far = TokenShards(path="s3://corpora/tokens", cache=ShardCache(folder=str(tmp_path), gib=1e-3))
    near = TokenShards(path=str(folder)).train_windows(128, 1)
    windows = far.train_windows(128, 1)
    for first in range(0, 400, 8):
        rows = first + np.arange(8)
        assert np.array_equal(windows.batch(rows), near.batch(rows))
    object_server.stop()
    monkeypatch.setattr(remote_folder, "_PAUSES", (0.01,))
    with pytest.raises(DataError, match=r"out of reach: .*--resume auto"):
        windows.batch(np.arange(3000, 4000))
