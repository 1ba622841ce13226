"""W&B runs as it is installed, without a network: offline files, and unreachable servers.

Each scenario is a process of its own, because wandb keeps one service per process.
"""

import http.server
import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_train.errors import ConfigError
from llm_train.testing.fork_server import ForkServer
from llm_train.trainer.logger import WandB
from tests.trainer.logger.wandb_stub import serving

pytest.importorskip("wandb")

WORKER = Path(__file__).with_name("wandb_worker.py")
Train = Callable[..., dict[str, Any]]


@pytest.fixture
def train(fork_server: ForkServer, tmp_path: Path) -> Train:
    """Trains in a process of its own and returns what it says at its end, and its warnings."""
    nobody = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc")}
    log = tmp_path / "log.txt"

    def run(directory: Path, mode: str, seconds: float = 3.0, **environment: str) -> dict[str, Any]:
        answer = tmp_path / "answer.json"
        whole = json.dumps({**nobody, **environment})
        arguments = (str(directory), mode, str(seconds), str(answer), whole)
        assert fork_server.run(*arguments, ranks=0, log=log, script=WORKER) == [0], log.read_text()
        return json.loads(answer.read_text())

    return run


def test_offline_keeps_its_id_over_a_second_start(train, tmp_path):
    run = tmp_path / "run"
    first, second = train(run, "auto"), train(run, "offline")
    assert first == second  # without a key, "auto" is offline
    assert first["mode"] == "offline"
    assert first["warnings"] == []
    assert (run / "wandb_id.txt").read_text().strip() == first["id"] != ""
    files = sorted((run / "wandb").glob(f"offline-run-*-{first['id']}/run-{first['id']}.wandb"))
    assert len(files) >= 1
    assert b"train/loss" in files[0].read_bytes()
    assert b"trainer/step" in files[0].read_bytes()


def test_what_a_server_is_told(train, tmp_path):
    """Notes, group, job type and tags; an alert of a spike; where the checkpoint lies."""
    run = tmp_path / "run"
    (run / "checkpoints" / "step-00000030").mkdir(parents=True)
    (run / "checkpoints" / "step-00000030" / "manifest.json").write_text("{}")
    (run / "config.yaml").write_text("seed: 1")
    with serving() as stub:
        told = train(run, "online", WANDB_API_KEY="x" * 40, WANDB_BASE_URL=stub.url)
    assert (told["mode"], told["warnings"]) == ("online", [])
    begun = next(variables for name, variables in stub.asked if name == "UpsertBucket")
    found = {key: begun[key] for key in ("notes", "groupName", "jobType", "tags")}
    assert found == {"notes": "why", "groupName": "g", "jobType": "pretraining", "tags": ["a"]}
    [alert] = [variables for name, variables in stub.asked if name == "NotifyScriptableRunAlert"]
    assert (alert["title"], alert["text"]) == ("run: spike", "step 20: reason loss")
    made = [variables["input"] for name, variables in stub.asked if name == "CreateArtifact"]
    assert {each["artifactTypeName"] for each in made} == {"run_table", "model"}


def test_an_unreachable_server_costs_little_and_stops_nothing(train, tmp_path):
    with socket.socket() as probe:  # nobody listens on this port
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    told = train(tmp_path / "run", "auto", WANDB_API_KEY="x" * 40, WANDB_BASE_URL=url)
    assert told["mode"] == "offline"
    [warning] = told["warnings"]
    assert warning.startswith("W&B online failed (URLError: ")
    assert warning.endswith("; going on offline")
    assert list((tmp_path / "run" / "wandb").glob(f"offline-run-*-{told['id']}"))


def test_online_without_a_key_asks_nobody(train, tmp_path):
    told = train(tmp_path / "run", "online")
    assert told["mode"] == "offline"
    assert "no API key in WANDB_API_KEY or netrc" in told["warnings"][0]


def test_when_nothing_can_be_written_nothing_is_logged_and_training_goes_on(train, tmp_path):
    (tmp_path / "run").write_text("a file where the run directory should be")
    told = train(tmp_path / "run", "offline")
    assert told["mode"] == "disabled"
    assert told["warnings"][0].startswith("W&B offline failed (FileExistsError: ")


class Broken(http.server.BaseHTTPRequestHandler):
    """A server that answers but cannot do anything."""

    def do_GET(self) -> None:
        self.send_error(404)

    def do_POST(self) -> None:
        self.send_error(500)

    def log_message(self, *_: object) -> None:
        pass


def test_a_broken_server_stops_nothing(train, tmp_path):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Broken) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        told = train(tmp_path / "run", "online", WANDB_API_KEY="x" * 40, WANDB_BASE_URL=url)
        server.shutdown()
    assert told["mode"] == "offline"
    assert told["warnings"][0].startswith("W&B online failed (HTTPError: ")
    assert list((tmp_path / "run" / "wandb").glob(f"offline-run-*-{told['id']}"))


@pytest.mark.slow
def test_a_silent_server_stops_nothing(train, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        told = train(tmp_path / "run", "online", 2.0, WANDB_API_KEY="x" * 40, WANDB_BASE_URL=url)
    assert told["mode"] == "offline"
    assert told["warnings"][0].startswith("W&B online failed (TimeoutError: ")


def test_auto_follows_the_environment_and_keys(monkeypatch, tmp_path):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert WandB().mode == "offline"
    (tmp_path / "netrc").write_text("machine api.wandb.ai\n  login user\n  password " + "x" * 40)
    assert WandB().mode == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert WandB().mode == "disabled"
    assert WandB(mode="online").mode == "online"


def test_disabled_does_nothing(tmp_path):
    logger = WandB(mode="disabled", directory=str(tmp_path / "run"))
    logger.log_metrics({"a": 1.0}, step=1)
    assert not (tmp_path / "run").exists()


def test_settings_that_cannot_work_are_refused(monkeypatch):
    with pytest.raises(ConfigError, match=r"^WandB\.init_timeout_seconds=0\.0 leaves no time"):
        WandB(init_timeout_seconds=0.0)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'llm-train\[wandb\]"):
        WandB()
    assert WandB(mode="disabled").mode == "disabled"
