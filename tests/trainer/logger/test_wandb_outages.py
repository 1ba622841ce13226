"""A network that is cut costs a run at most five seconds and no row, whenever that happens."""

from __future__ import annotations

import json
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from llm_train.testing.fork_server import ForkServer
from llm_train.trainer.logger import read_metrics
from llm_train.trainer.logger import wandb as module
from tests.trainer.logger.wandb_stub import Stub, serving

pytest.importorskip("wandb")

WORKER = Path(__file__).with_name("wandb_outage_worker.py")
LIMIT_SECONDS = 5.0
ROWS = set(range(1, 31))


def waited(
    stub: Stub, when: str, way: str, fork_server: ForkServer, folder: Path
) -> dict[str, float]:
    """Seconds that a run waits at its start, for its slowest row, and at its end."""
    nobody = {"HOME": str(folder), "NETRC": str(folder / "netrc"), "WANDB_API_KEY": "x" * 40}
    whole = json.dumps({**nobody, "WANDB_BASE_URL": stub.url})
    log, answer = folder / "log.txt", folder / "answer.json"
    arguments = (str(folder / "run"), when, way, str(answer), whole)
    assert fork_server.run(*arguments, ranks=0, log=log, script=WORKER) == [0], log.read_text()
    metrics = read_metrics(folder / "run" / "metrics.jsonl")
    assert {record["step"] for record in metrics} == ROWS
    # What ``wandb sync`` sends later: offline runs and those that lost their server.
    kept = b"".join(path.read_bytes() for path in (folder / "run" / "wandb").glob("*/*.wandb"))
    assert [step for step in ROWS if str(77000 + step).encode() not in kept] == []
    found: dict[str, float] = json.loads(answer.read_text())
    return found


def test_a_server_that_answers_has_all_rows(fork_server: ForkServer, tmp_path: Path) -> None:
    with serving() as stub:
        waited(stub, "never", "", fork_server, tmp_path)
        assert stub.steps == ROWS


@pytest.mark.parametrize(
    ("when", "way"),
    [
        ("start", "silent"),
        ("middle", "silent"),
        pytest.param("middle", "refusing", marks=pytest.mark.slow),
        pytest.param("end", "silent", marks=pytest.mark.slow),
        pytest.param("end", "refusing", marks=pytest.mark.slow),
    ],
)
def test_an_outage(when: str, way: Any, fork_server: ForkServer, tmp_path: Path) -> None:
    # At the start, the server still answers the first question.
    with serving(answers=1 if when == "start" else 1 << 30) as stub:
        waits = waited(stub, when, way, fork_server, tmp_path)
        assert sum(waits.values()) < LIMIT_SECONDS, waits


def test_a_name_server_that_is_silent_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answered.wait(30))
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"no answer within 0\.2 s"):
        module._probe(0.2)
    assert time.monotonic() - began < LIMIT_SECONDS
    answered.set()
