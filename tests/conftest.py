"""The fork server of all tests, and the two processes of the whole default suite."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator
from typing import Any

import pytest

from llm_train.testing.fork_server import ForkServer


@pytest.fixture(scope="session")
def fork_server() -> ForkServer:
    """Forks ranks that have everything imported; starting one costs seconds instead of a minute."""
    return ForkServer()


@pytest.fixture
def object_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """What s3:// leads to: a server on this machine, where s3fs and moto are installed."""
    s3fs, moto = pytest.importorskip("s3fs"), pytest.importorskip("moto.server")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    yield server
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Runs the whole default suite in two processes, a file at a time, where xdist is installed.

    Most tests keep one core busy. Chosen files, other markers and debuggers have one process, and
    ``-n 0`` asks for it.
    """
    option = config.option
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    asked = option.markexpr != "not slow and not gpu and not faults" or option.usepdb
    if not whole or asked or option.capture == "no" or hasattr(config, "workerinput"):
        return
    if config.pluginmanager.hasplugin("xdist") and option.numprocesses is None:
        option.numprocesses, option.dist = 2, "loadfile"
        option.loadscopereorder = False  # or files with many tests would come first


@pytest.hookimpl(wrapper=True)
def pytest_collect_file() -> Generator[None, list[pytest.Collector], list[pytest.Collector]]:
    """Takes no doctests from tests: pytest would silently skip a file that fails to import."""
    return [found for found in (yield) if type(found) is pytest.Module]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Takes files with many short tests last, so that both processes end at the same time."""
    if hasattr(config, "workerinput"):
        tests = Counter(item.path for item in items)
        items.sort(key=lambda item: tests[item.path])
